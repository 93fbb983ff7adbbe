"""benchmarks/profile_steps.py on the CPU, where operators stand for kernels; the kinds by names that GPUs give."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.kernel_kinds import OTHER, Event, busy_seconds, events_of, kind_of, summary
from benchmarks.profile_steps import Recorder, main
from torch.autograd import DeviceType

from pal_audio.bench import infer, measure
from pal_audio.errors import PalError

TINY = "--llm tiny-llama --encoder tiny-frames --audio-tokens 16 --warmup 1 --profiled 2 --device cpu".split()


def check_sums(phase: dict[str, Any]) -> None:
    kinds = phase["kinds"].values()
    assert sum(kind["seconds"] for kind in kinds) == pytest.approx(phase["kernel_s"])
    assert sum(kind["num"] for kind in kinds) == pytest.approx(phase["num_kernels"])
    assert phase["busy_s"] == pytest.approx(phase["kernel_s"]), "operators of the CPU follow each other"
    assert phase["kernel_s"] > 0
    assert phase["kinds"]["matrix products"]["num"] >= 1
    assert 0 <= phase["idle_share"] < 1
    assert len(phase["heaviest"]) == 15


def test_training_steps_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = measure.timed
    rows = main(["train", "--integrations", "text,lal", "--batch", "2", "--steps", "2", "--out", str(tmp_path), *TINY])
    assert [row["title"] for row in rows] == ["text 2x0+64", "lal per_layer 2x16+64"], "no other than were named"
    for row in rows:
        assert row["error"] is None, row
        (step,) = row["phases"].values()
        check_sums(step)
        assert step["wall_s"] == row["step_s"]
        assert sum(step["floor"].values()) == pytest.approx(row["floor_s"])
        assert step["kinds"]["optimizer"]["num"] >= 1
    assert row["times"]["num"] == 2
    assert json.loads((tmp_path / "profile.json").read_text())["rows"] == rows
    text = (tmp_path / "profile.txt").read_text()
    assert text.splitlines()[-2].startswith("text 2x0+64, step: wall ")
    assert text.splitlines()[-1].startswith("lal per_layer 2x16+64, step: wall ")
    assert text.splitlines()[-1] in capsys.readouterr().out
    assert measure.timed is timed


def test_prefills_and_decoded_tokens_by_kind() -> None:
    rows = main(["infer", "--integrations", "text,lal", "--batch", "1,2", "--repeats", "2", "--new-tokens", "2", *TINY])
    assert [row["title"] for row in rows] == [
        f"{name}+64" for name in ("text 1x0", "lal per_layer 1x16", "text 2x0", "lal per_layer 2x16")
    ]
    for row in rows:
        assert row["error"] is None, row
        assert list(row["phases"]) == ["ready_first_token", "first_token", "token"]
        for name, phase in row["phases"].items():
            check_sums(phase)
            assert phase["wall_s"] == row[f"{name}_s"]
        assert row["phases"]["token"]["floor"] == {"bytes": row["byte_bound_s"]}
    ready, whole, _ = rows[1]["phases"].values()
    assert ready["floor"]["matrix products"] < whole["floor"]["matrix products"]
    assert ready["num_kernels"] < whole["num_kernels"], "encoding is left out"


def test_the_first_token_of_a_decoders_own_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    first_token = infer.by_decoder

    def noted(model: Any, text: Any, new_tokens: int, prefill: str, **options: Any) -> Any:
        asked.append(prefill)
        return first_token(model, text, new_tokens, prefill, **options)

    monkeypatch.setattr(infer, "by_decoder", noted)
    (row,) = main(["infer", "--integrations", "lal", "--repeats", "2", "--new-tokens", "2", "--prefill", "compiled", *TINY])
    assert row["error"] is None, row
    assert asked == ["compiled"]
    assert row["phases"]["ready_first_token"]["wall_s"] == row["ready_first_token_s"]


def test_a_profile_without_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.profile_steps.events_of", lambda found, device: [])
    with pytest.raises(RuntimeError, match="saw no kernel"):
        Recorder(1).timed(lambda: None, 3, torch.device("cpu"))


def test_no_more_calls_than_the_benchmark_asks_for() -> None:
    """A decoder's tensors hold so many steps and no more."""
    calls: list[int] = []
    recorder = Recorder(2)
    times = recorder.timed(lambda: calls.append(int(torch.ones(2).sum())), 8, torch.device("cpu"))
    assert (len(calls), times.num) == (8, 5)
    assert recorder.phases[times.median_s]["wall_s"] == times.median_s


def test_what_fails_is_in_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("pal_audio.bench.train.measure_case", fail)
    with pytest.raises(SystemExit):
        main(["train", "--integrations", "text", "--out", str(tmp_path), *TINY])
    assert "text 16x0+64: RuntimeError: no such kernel" in (tmp_path / "profile.txt").read_text()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", "matrix products"),
        ("triton_tem_fused_mm_3", "matrix products"),
        ("aten::mm", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>", "attention (flash)"),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackward)", "attention (memory-efficient)"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention (cuDNN)"),
        ("_attend", "own decode_kernel"),
        ("_combine", "own decode_kernel"),
        ("_attend_0d1d2de3c", "own decode_kernel"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<c10::BFloat16>>", "optimizer"),
        ("triton_for_fused_0", "optimizer"),
        ("triton_red_fused__log_softmax__to_copy_nll_loss_forward_2", "logits: loss, argmax"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "norms, reductions (generated)"),
        ("triton_poi_fused__unsafe_view_cat_mul_silu_7", "elementwise, joins (generated)"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "norms, elementwise (eager)"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda(at::TensorIteratorBase&)>", "copies, memset"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_alignedK_contig<OpaqueType<2u>>", "copies, memset"),
        ("Memcpy HtoD (Pageable -> Device)", "copies, memset"),
        ("Memset (Device)", "copies, memset"),
        ("void at::native::(anonymous namespace)::compute_grad_weight<c10::BFloat16>", "embedding, indexing"),
        ("a_kernel_of_tomorrow", OTHER),
    ],
)  # fmt: skip
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_kernels_of_several_streams_are_busy_once_and_counted_twice() -> None:
    events = [Event("nvjet", 0.0, 4.0), Event("unknown", 1.0, 1.0), Event("nvjet", 3.0, 3.0), Event("Memset (Device)", 8.0, 2.0)]
    assert busy_seconds(events) == 8.0
    phase = summary(events, num_steps=2, wall_s=5.0)
    assert phase["busy_s"] == 4.0
    assert phase["idle_share"] == pytest.approx(0.2)
    assert phase["kernel_s"] == 5.0
    assert phase["kinds"]["matrix products"] == {"seconds": 3.5, "num": 1.0}
    assert phase["kinds"][OTHER] == {"seconds": 0.5, "num": 0.5}


def test_of_a_gpu_kernels_count_and_neither_launches_nor_annotations() -> None:
    def event(name: str, device: DeviceType, is_annotation: bool = False) -> SimpleNamespace:
        span = torch.autograd.profiler_util.Interval(10.0, 30.0)
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=is_annotation, time_range=span)

    seen = [event("cudaLaunchKernel", DeviceType.CPU), event("nvjet", DeviceType.CUDA), event("step", DeviceType.CUDA, True)]
    found: Any = SimpleNamespace(events=lambda: seen)
    (kernel,) = events_of(found, torch.device("cuda"))
    assert kernel == ("nvjet", pytest.approx(1e-5), pytest.approx(2e-5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--llm", "tiny-lama"], "did you mean 'tiny-llama'"),
        (["train", "--new-tokens", "3"], "unrecognized arguments: --new-tokens"),
        (["infer", "--decode", "generate"], "decode 'generate' is unknown; known are loop, compiled, compiled-matmul"),
        (["infer", "--prefill", "graph"], "invalid choice: 'graph'"),
        (["infer", "--profiled", "0"], "--profiled 0: at least one"),
        (["infer", "--warmup", "some"], "invalid int value"),
        (["train", "--compile-ahead", "-1"], "--compile-ahead -1: a number of processes, or 0"),
        (["train", "--sweep", "nowhere.yaml"], "--sweep nowhere.yaml: no such file"),
        (["train", "--out", __file__], "is a file; give a folder"),
        (["train", "--set", "setup.compile_mode=fast"], "compile_mode"),
        ([], "required: verb"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(PalError, match=message) as raised:
        main(arguments)
    assert "\n" not in str(raised.value)
