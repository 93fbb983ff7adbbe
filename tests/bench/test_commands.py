"""`pal bench train` and `infer` on the CPU with tiny shapes: that the benchmark works, never how long anything takes."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio import cli
from pal_audio.bench import infer, measure, models, table, train
from pal_audio.bench.case import Case, Setup
from pal_audio.integration import cost
from pal_audio.model import compiling
from pal_audio.model.decoder import Decoder

TINY = [
    "--llm",
    "tiny-llama",
    "--encoder",
    "tiny-frames",
    "--batch",
    "2",
    "--text-tokens",
    "12",
    "--warmup",
    "1",
    "--device",
    "cpu",
]
TRAIN = ["bench", "train", *TINY, "--audio-tokens", "8,12", "--steps", "2"]
INFER = ["bench", "infer", *TINY, "--audio-tokens", "8", "--repeats", "1", "--new-tokens", "2"]


def test_train_writes_table_rows_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    assert cli.main([*TRAIN, "--precision", "float32", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not measured" in shown, "memory is not measured on the CPU"
    assert "torch" in shown.splitlines()[0]
    groups = json.loads((tmp_path / "results.json").read_text())["groups"]
    assert len(groups) == 2
    for row in [row for group in groups for row in group]:
        assert row["error"] is None
        assert row["times"]["p10_s"] <= row["step_s"] <= row["times"]["p90_s"]
        assert row["peak_bytes"] is row["rest_bytes"] is None
        assert row["gradients_bytes"] > 0
        # Adam's two moments, and a counter of steps for each tensor
        assert 2 * row["gradients_bytes"] <= row["optimizer_bytes"] <= 2 * row["gradients_bytes"] + 4000
        assert row["ratios"]["step_plits"] > 0
        assert row["floor_s"] > 0
        assert row["step_s"] > 0
    text, plits, lal, _ = groups[0]
    assert lal["ratios"]["flops_plits"] == plits["flops"] / lal["flops"] > 1 > lal["ratios"]["flops_text"]
    assert text["ratios"]["flops_text"] == 1
    for row in (text, plits, lal):
        assert 4 < row["first_loss"] < 8, "near the logarithm of the vocabulary"
    assert (tmp_path / "train.png").stat().st_size > 10_000
    assert (tmp_path / "results.csv").is_file()


@pytest.mark.parametrize(
    "options",
    [
        ["--precision", "bf16", "--checkpointing"],
        ["--precision", "autocast", "--frozen-llm", "--projector", "low_rank:4", "--layers", "from:1"],
        ["--precision", "float32", "--packed"],
    ],
    ids=" ".join,
)
def test_train_with_other_settings(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TRAIN, "--audio-tokens", "8", *options, "--steps", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["groups"][0]
    assert [row["case"]["integration"] for row in rows] == ["text", "plits", "lal", "pal"]
    assert all(row["error"] is None for row in rows)


def test_flamingo_is_measured_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (TRAIN, INFER):
        lists = ["--audio-tokens", "8", "--integrations", "flamingo", "--set", 'layers=["every:2"]']
        assert cli.main([*verb, *lists, "--precision", "float32", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["groups"][0]
        assert [row["case"]["integration"] for row in rows] == ["text", "plits", "lal", "flamingo"]
        assert all(row["error"] is None for row in rows)
        assert table.label_of(rows[-1], []) == "flamingo every:2"


def test_every_way_computes_the_same_loss() -> None:
    """What is measured is the same work: logits here or in the model, packed or not."""
    losses = {}
    for name, options in {
        "here": {},
        "model": {"logits": "model"},
        "packed": {"packed": True},
        "again": {"checkpointing": True},
    }.items():
        for arm in cost.COUNTED:
            setup = Setup(llm="tiny-qwen2", encoder="tiny-frames", precision="float32", **options)
            case = Case(setup=setup, integration=arm, batch=2, audio_tokens=6, text_tokens=12, summary=2)
            model = models.build(case, torch.device("cpu"))
            models.training_mode(case, model)
            losses[name, arm] = models.loss_function(case, model, models.make_batch(case, model))().item()
    for (_, arm), loss in losses.items():
        assert loss == pytest.approx(losses["here", arm], abs=1e-5)


def test_the_layout() -> None:
    case = Case(
        setup=Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32"), integration="plits", batch=2, audio_tokens=6
    )
    model = models.build(case, torch.device("cpu"))
    batch = models.make_batch(case, model)
    row = batch.inputs["input_ids"][0].tolist()
    assert row.index(300) == 24, "the marker stands behind the system prompt"
    assert row[25:31] == [301] * 6
    assert len(row) == 64 + 6
    assert (batch.labels[0] >= 0).sum() == 32 == len(batch.columns)
    assert batch.columns[-1] == len(row) - 2


def test_infer_tells_first_token_decoding_and_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*INFER, "--precision", "float32", "--integrations", "lal", "--out", str(tmp_path)]) == 0
    assert "ms a token" in capsys.readouterr().out
    text, plits, lal = json.loads((tmp_path / "results.json").read_text())["groups"][0]
    assert text["memory_bytes"] == 0 < plits["memory_bytes"]
    assert plits["kv_bytes"] > lal["kv_bytes"] == text["kv_bytes"]
    assert lal["memory_bytes"] == 2 * 2 * 2 * 8 * 16 * 4, "sides, clips, layers, tokens, width, float32"
    assert lal["encode_s"] > 0
    assert text["encode_s"] is None


@pytest.mark.parametrize("one_clip", [False, True])
def test_the_compiled_loop_is_measured(one_clip: bool, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--precision",
        "float32",
        "--integrations",
        "lal,pal,flamingo",
        "--set",
        'layers=["every:2"]',
        "--decode",
        "compiled",
    ]
    assert cli.main([*INFER, *options, *(["--one-clip"] if one_clip else []), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["groups"][0]
    assert [row["case"]["integration"] for row in rows] == ["text", "plits", "lal", "pal", "flamingo"]
    assert all(row["error"] is None and row["token_s"] > 0 for row in rows)


def test_one_clip_is_held_once(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--precision",
        "float32",
        "--integrations",
        "lal",
        "--one-clip",
        "--chunk-tokens",
        "4",
        "--set",
        "setup.positions=zero",
    ]
    assert cli.main([*INFER, *options, "--json"]) == 0
    lal = json.loads(capsys.readouterr().out)["groups"][0][2]
    assert lal["memory_bytes"] == 2 * 1 * 2 * 8 * 16 * 4


def test_a_memory_of_chunks_or_of_one_clip_for_all_rows_gives_the_same_logits() -> None:
    setup = Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32", positions="zero")
    case = Case(setup=setup, integration="lal", batch=3, audio_tokens=8, text_tokens=12)
    model = models.build(case, torch.device("cpu")).eval()
    for stream in model.streams:
        stream.connector.head.time_gain = None  # chunks made one by one restart their time
    inputs = models.make_batch(case, model, num_clips=1).inputs
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    memory, chunks = infer.make_memory(case, model, inputs, 0), infer.make_memory(case, model, inputs, 3)
    assert memory is not None
    assert chunks is not None
    assert chunks.num_bytes == memory.num_bytes
    with torch.no_grad():
        expected = torch.cat(
            [model(**{name: rows[[row]] for name, rows in text.items()}, audio_memory=memory).logits for row in range(3)]
        )
        for one in (memory, chunks):
            together = model(**text, audio_memory=infer.shared(one, 3)).logits
            torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arm", ["text", "plits", "lal", "pal"])
def test_the_loop_decodes_as_generate_does(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32")
    case = Case(setup=setup, integration=arm, batch=2, audio_tokens=8, text_tokens=12, summary=2)
    model = models.build(case, torch.device("cpu")).eval()
    inputs = models.make_batch(case, model).inputs
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    memory = infer.make_memory(case, model, inputs, 0)
    expected = model.generate(**text, audio_memory=memory, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    seen: list[torch.Tensor] = []
    forward = model.forward

    def watched(**inputs: object) -> object:
        outputs = forward(**inputs)
        seen.append(outputs.logits[:, -1].argmax(-1))
        return outputs

    monkeypatch.setattr(model, "forward", watched)
    with torch.no_grad():
        assert infer.decode_by_loop(infer.Asked(model, text, memory, 4, torch.device("cpu"), 1)) > 0
    assert torch.equal(torch.stack(seen, dim=1), expected[:, -6:])


def test_lines_of_a_picture_do_not_cover_each_other() -> None:
    def row(**changes: object) -> dict[str, object]:
        return {"case": {"integration": "lal", "projector": "per_layer", "layers": "all", "batch": 4} | changes}

    assert table.label_of(row(), []) == "lal"
    assert table.label_of(row(integration="pal", summary=4), []) == "pal k=4"
    assert table.label_of(row(batch=8), ["batch"]) == "lal batch 8"
    assert table.label_of(row(projector="shared"), ["batch"]) == "lal shared all batch 4"


def test_no_picture_of_nothing(tmp_path: Path) -> None:
    assert not table.picture([], tmp_path / "none.png", "step_s", "peak_bytes", "step")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--llm", "lama-3.2-1b"], "did you mean 'llama-3.2-1b'?"),
        (["train", "--encoder", "whisper"], "did you mean 'whisper-base'?"),
        (["train", "--set", "setup.kernl=x"], "did you mean 'kernel'?"),
        (["train", "--set", "a.b=x"], "setup.NAME=VALUE"),
        (["train", "--projector", "low_rank:0"], "low_rank:R"),
        (["train", "--device", "tpu"], "tpu"),
        (["train", "--sweep", "none.yaml"], "none.yaml: No such file"),
        (["train", "--integrations", "lall"], "integration 'lall' is unknown; did you mean 'lal'?"),
        (["infer", "--decode", "fast"], "decode 'fast' is unknown"),
        (["infer", "--prefill", "fast"], "prefill 'fast' is unknown"),
        (["infer", "--prefill", "captured"], "add --decode compiled"),
        (["infer", "--chunk-tokens", "4", "--encoder", "conv"], "given frames"),
        (["infer", "--chunk-tokens", "4"], "name --integrations lal"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel can be had here")
def test_a_setting_that_cannot_be_had_here_is_the_user_s_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TRAIN, "--integrations", "lal", "--steps", "1", "--set", "setup.audio_kernel=triton"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "cases failed, the first is" in last
    assert "audio_kernel 'triton'" in last
    assert "a fault of pal" not in last


def test_a_sweep_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "setup: {llm: tiny-llama, encoder: tiny-frames, precision: float32}\nbatch: [1]\naudio_tokens: [4]\nintegrations: [lal]\n"
    )
    assert (
        cli.main(["bench", "train", "--sweep", str(file), "--text-tokens", "8", "--steps", "1", "--warmup", "1", "--json"]) == 0
    )
    (group,) = json.loads(capsys.readouterr().out)["groups"]
    assert [row["case"]["text_tokens"] for row in group] == [8, 8, 8]


@pytest.mark.parametrize(("mode", "told"), [("default", True), ("reduce-overhead", False)])
def test_memory_of_replayed_graphs_is_not_told(mode: str, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's allocator does not count what a CUDA graph holds: the peak of an H200 was 'below' weights and gradients."""
    monkeypatch.setattr(measure, "peak_bytes", lambda device: 10**9)
    monkeypatch.setattr(compiling, "enable", lambda *_: None)  # which no CPU needs for this
    setup = Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32", compile="model", compile_mode=mode)
    case = Case(setup=setup, integration="lal", batch=1, audio_tokens=8, text_tokens=8)
    row = train.measure_case(case, torch.device("cpu"), 1, 1, {"matrix_flops": 1e12, "bandwidth_bytes": 1e11})
    assert (row["peak_bytes"] == 10**9) is (row["rest_bytes"] is not None) is told


@pytest.mark.parametrize(("device", "num"), [("cuda", 2), ("cpu", 0)])
def test_a_gpu_is_under_load_before_it_is_timed(device: str, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as said by the clock, and never with more than one call waiting."""
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: done.append("waited"))
    monkeypatch.setattr(measure.time, "perf_counter", iter([0.0, 0.1, 0.4, 0.6]).__next__)
    measure.settle(lambda: done.append("called"), torch.device(device))
    assert done == ["called", "waited"] * num


def test_load_before_decoding_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """More steps of load than there are slots: answers are the same, and nothing is prepared once more."""
    decoders: list[Decoder] = []
    prepared: list[Decoder] = []
    prepare = Decoder._prepare
    monkeypatch.setattr(infer, "Decoder", lambda *args, **kwargs: decoders.append(Decoder(*args, **kwargs)) or decoders[-1])
    monkeypatch.setattr(Decoder, "choose", lambda self, _: (7 * self.token_B1 + 3) % 50)  # each by the one before
    monkeypatch.setattr(Decoder, "_prepare", lambda self: (prepared.append(self), prepare(self)))
    loads: list[int] = []
    for num in (0, 99):
        monkeypatch.setattr(measure, "settle", lambda call, _, num=num: loads.append(len([call() for _ in range(num)])))
        assert cli.main([*INFER, "--integrations", "lal", "--decode", "compiled-matmul"]) == 0
    assert loads == [0] * 6 + [99] * 6, "first token and decoding of text, PLITS and LAL"
    assert len(prepared) == len(decoders) == 6
    for without, loaded in zip(decoders[:3], decoders[3:], strict=True):
        assert torch.equal(without.ids_BT, loaded.ids_BT)
        assert torch.equal(without.plan.seen_BT, loaded.plan.seen_BT)


def test_frames_are_let_go_before_answers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands while a model answers is the memory, not what it was made of."""
    made: list[weakref.ref[torch.Tensor]] = []
    original = models.make_batch

    def watched(*args: Any) -> models.Batch:
        batch = original(*args)
        made.append(weakref.ref(batch.inputs["input_features"].layers[0]))
        return batch

    def decode(asked: infer.Asked) -> float:
        assert asked.memory is not None
        assert made[0]() is None
        return 1.0

    monkeypatch.setattr(models, "make_batch", watched)
    monkeypatch.setitem(infer.DECODERS, "loop", decode)
    case = Case(setup=Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32"), integration="lal", batch=2,
                audio_tokens=8, text_tokens=12, extra={"decode": "loop"})  # fmt: skip
    row = infer.measure_case(case, torch.device("cpu"), 1, 1, {"matrix_flops": 1e12, "bandwidth_bytes": 1e11})
    assert row["token_s"] == 1.0
    assert row["memory_bytes"] > 0 < row["kv_bytes"]
