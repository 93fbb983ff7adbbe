"""Positions, layouts and visibility against examples worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio.errors import PalError
from pal_audio.integration.config import parse_layers
from pal_audio.integration.positions import NOWHERE, lay_out, place, spread, text_positions

M, S, T = 90, 91, 5  # marker, slot, text
IDS = (M, S)


def tensor(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_span_and_zero_by_hand() -> None:
    ids = torch.tensor([[T, T, M, S, S, T, T]])
    mask = torch.ones_like(ids)
    span = place(ids, mask, IDS, tensor(2), tensor(5), "span")
    # Marker at 2, slots at 3 and 4, five positions for the clip (3 to 7), text goes on at 8.
    assert span.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 8, 9]]
    assert (span.markers_BR.tolist(), span.shifts_BR.tolist(), span.clips_BR.tolist()) == ([[2]], [[3]], [[0]])
    zero = place(ids, mask, IDS, tensor(2), tensor(5), "zero")
    assert zero.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_two_clips_beside_each_other_and_a_row_without() -> None:
    ids = torch.tensor([[M, M, S, T], [T, T, T, T], [0, T, M, T]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    placement = place(ids, mask, IDS, tensor(0, 1, 0), tensor(4, 3, 2), "span")
    # Row 0: marker at 0, clip 1..4, marker at 5, slot 6, clip 6..8, text at 9. Row 2 is padded left.
    assert placement.position_ids_BL.tolist() == [[0, 5, 6, 9], [0, 1, 2, 3], [0, 0, 1, 4]]
    assert placement.clips_BR.tolist() == [[0, 1], [-1, -1], [2, -1]]
    assert placement.markers_BR.tolist() == [[0, 5], [NOWHERE, NOWHERE], [1, NOWHERE]]


def test_the_end_of_a_prompt_has_the_positions_it_has_in_the_whole() -> None:
    """A kept cache: only the last tokens are given, with the full mask."""
    ids = torch.tensor([[T, M, S, T, M, S, S, T, T]])
    mask = torch.ones_like(ids)
    whole = place(ids, mask, IDS, tensor(1, 2), tensor(6, 3), "span")
    for start in range(1, ids.shape[1]):
        part = text_positions(ids[:, start:], mask, IDS, whole.shifts_BR, tensor(2))
        assert part.tolist() == whole.position_ids_BL[:, start:].tolist()


def test_tokens_of_streams_share_one_time_axis() -> None:
    assert spread(tensor(4), tensor(4), 4).tolist() == [[0, 1, 2, 3]]
    # Two tokens over six positions: the middles of the two halves, counted from -1/2.
    assert spread(tensor(2), tensor(6), 2).tolist() == [[1, 4]]


def test_layout_of_rows_with_several_clips() -> None:
    ids = torch.tensor([[M, T, M, T], [T, T, T, M]])
    placement = place(ids, torch.ones_like(ids), IDS, tensor(0, 0, 0), tensor(2, 3, 1), "span")
    layout = lay_out(placement, tensor(2, 3, 1), tensor(0, 0, 0), tensor(2, 3, 1), 3, "span", True)
    assert layout.source_BA[0].tolist() == [0, 1, 3, 4, 5]  # clip 0 has 2 of 3 padded tokens, clip 1 three
    assert layout.source_BA[1, 0] == 6
    assert layout.positions_BA[0].tolist() == [1, 2, 5, 6, 7]
    assert layout.after_BA[0].tolist() == [0, 0, 4, 4, 4]
    assert layout.after_BA[1].tolist() == [3] + [NOWHERE] * 4
    visible = layout.visible(placement.position_ids_BL)[0, 0]
    assert visible.tolist() == [[False] * 5, [True] * 2 + [False] * 3, [True] * 2 + [False] * 3, [True] * 5]


def test_hidden_from_the_summary() -> None:
    ids = torch.tensor([[M, S, S, T]])
    placement = place(ids, torch.ones_like(ids), IDS, tensor(2), tensor(3), "span")
    seen = lay_out(placement, tensor(3), tensor(2), tensor(3), 3, "span", True).visible(placement.position_ids_BL)[0, 0]
    hidden = lay_out(placement, tensor(3), tensor(2), tensor(3), 3, "span", False).visible(placement.position_ids_BL)[0, 0]
    assert seen.all(-1).tolist() == [False, True, True, True]
    assert hidden.all(-1).tolist() == [False, False, False, True]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_positions_by_a_loop(data: st.DataObject) -> None:
    """Random prompts against a loop that walks token by token."""
    rows, slots, spans = [], [], []
    for _ in range(data.draw(st.integers(1, 3))):
        row = []
        for _ in range(data.draw(st.integers(0, 3))):
            row += [T] * data.draw(st.integers(0, 3))
            slots.append(data.draw(st.integers(0, 3)))
            spans.append(max(slots[-1], data.draw(st.integers(1, 6))))
            row += [M] + [S] * slots[-1]
        rows.append(row + [T] * data.draw(st.integers(1, 3)))
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    mode = data.draw(st.sampled_from(["span", "zero"]))
    result = place(ids, mask, IDS, torch.tensor(slots, dtype=torch.int64), torch.tensor(spans, dtype=torch.int64), mode)
    clip = -1
    for number, row in enumerate(rows):
        expected, position, start = [], 0, None
        for token in row:
            if token != S and start is not None:
                position = start + 1 + (max(slots[clip], spans[clip]) if mode == "span" else slots[clip])
                start = None
            if token == M:
                clip, start = clip + 1, position
            expected.append(position)
            position += 1
        assert result.position_ids_BL[number, width - len(row) :].tolist() == expected


@pytest.mark.parametrize(
    ("selection", "layers"),
    [("all", (0, 1, 2, 3, 4)), ("from:3", (3, 4)), ("every:2", (0, 2, 4)), ([-1, 0], (0, 4)), ([], ())],
)
def test_layer_selections(selection: str | list[int], layers: tuple[int, ...]) -> None:
    assert parse_layers(selection, 5) == layers


@pytest.mark.parametrize("selection", ["from:5", "every:0", "some", "from:", [5], [-6], [0, 0], [0, -5]])
def test_selections_that_are_refused(selection: str | list[int]) -> None:
    with pytest.raises(PalError, match="layers"):
        parse_layers(selection, 5)
