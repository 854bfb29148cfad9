"""The benchmarks' arithmetic against numbers worked out by hand, and their programs on tiny models."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

import bench
import flops
import gpu
import growth
import growth_page
import interval_coverage
import prepare_rows
from legs import Leg
from render_readme import between, read_csv

ROOT = Path(__file__).resolve().parents[2]
TINYLLAMA = flops.llama(flops.TINYLLAMA, rank=16)
# N, p, L, h, Vd: small numbers to count with.
SMALL = flops.Shape(linear=100, adapter=10, layers=2, attention=3, head=50, parameters=0)


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


def test_the_shape_of_tinyllama():
    """A layer: 2048 x 2048 twice, 2048 x 256 twice, 2048 x 5632 three times; 22 of them. Its published size is 1,100,048,384."""
    assert TINYLLAMA.linear == 22 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632) == 968_884_224
    assert TINYLLAMA.adapter == 22 * 16 * (2 * 4096 + 2 * 2304 + 3 * 7680) == 12_615_680
    assert TINYLLAMA.head == 65_536_000
    assert TINYLLAMA.parameters == 1_100_048_384


def test_a_row_of_1024_tokens_half_of_them_trained():
    """4N + 6p + 3A + 4cVh = 3.876 + 0.076 + 0.277 + 0.131 = 4.36 GFLOPs a token, A = 2 * 2048 * 22 * 1024."""
    found = flops.training(TINYLLAMA, [(512, 512)])
    assert found == 1024 * (4 * 968_884_224 + 6 * 12_615_680 + 3 * 92_274_688 + 2 * 65_536_000)
    assert found / 1024 == pytest.approx(4.36e9, rel=1e-3)


def test_the_embedded_base_has_the_parameters_of_its_file():
    from safetensors import safe_open

    folder = ROOT / "models/base/weights"
    shape = flops.llama(json.loads((folder / "config.json").read_text(encoding="utf-8")), rank=16)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert shape.parameters == sum(file.get_tensor(name).size for name in file.keys())


def test_a_pair_with_its_prompt_twice_and_once():
    """Prompt 4, answers 2 and 3. Twice: 13 tokens, 6^2 + 7^2 = 85 places; once: 9 tokens, 85 - 4^2 = 69. 2hL = 12."""
    pair = [(4, 2, 3)]
    assert flops.training(SMALL, pair) == 13 * 460 + 3 * 12 * 85 + 4 * 5 * 50
    assert flops.training(SMALL, pair, prompt_once=True) == 9 * 460 + 3 * 12 * 69 + 4 * 5 * 50
    assert flops.tokens(pair) == 13
    assert flops.training(SMALL, [(4, 2)]) == flops.training(SMALL, [(4, 2)], prompt_once=True) == 6 * 460 + 36 * 36 + 4 * 2 * 50


# ---- bench -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "low", "high"), [(5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (48, 17, 32)])
def test_the_interval_of_a_median(n, low, high):
    """Ranks from tables of the sign test: of 9 values the second and the eighth, P(Binomial(9, 1/2) < 2) = 10/512 = 0.0195."""
    assert bench.median_interval([float(value) for value in range(n, 0, -1)]) == (low, high)


def test_a_ratio_is_taken_round_by_round():
    """A machine at half speed in the second round changes nothing."""
    assert bench.ratio([3.0, 6.0, 3.0], [1.0, 2.0, 1.5])["median"] == 3.0


SFT_ROWS = [
    {"id": str(n), "input_ids": [7, 8, n, *range(10, 10 + n % 9 + 3), 1], "labels": [-100] * 3 + [*range(10, 10 + n % 9 + 3), 1]}
    for n in range(400)
]
PAIRS = [{"id": str(n), "prompt_ids": [7, n], "chosen_ids": [20, n, 1], "rejected_ids": [30, 31, n, 1]} for n in range(400)]


def test_skewed_rows_keep_prompts_ends_and_about_the_mean():
    rows = bench.skewed("sft", SFT_ROWS, longest=60, seed=1)
    assert rows == bench.skewed("sft", SFT_ROWS, longest=60, seed=1) != bench.skewed("sft", SFT_ROWS, longest=60, seed=2)
    assert [row["input_ids"][:3] for row in rows] == [row["input_ids"][:3] for row in SFT_ROWS]
    assert all(row["input_ids"][-1] == 1 and row["labels"] == [-100] * 3 + row["input_ids"][3:] for row in rows)
    lengths = [len(row["input_ids"]) - 3 for row in rows]
    assert max(lengths) <= 57 and min(lengths) >= 2
    assert mean(lengths) == pytest.approx(mean(len(row["input_ids"]) - 3 for row in SFT_ROWS), rel=0.15)
    assert max(lengths) > 4 * sorted(lengths)[200]


def test_skewed_pairs_are_drawn_answer_by_answer():
    rows = bench.skewed("dpo", PAIRS, longest=40, seed=1)
    assert [row["prompt_ids"] for row in rows] == [row["prompt_ids"] for row in PAIRS]
    assert any(len(row["chosen_ids"]) > 2 * len(row["rejected_ids"]) for row in rows)
    assert any(2 * len(row["chosen_ids"]) < len(row["rejected_ids"]) for row in rows)
    assert rows[0]["chosen_ids"][-1] == 1 and PAIRS[0]["chosen_ids"] == [20, 0, 1]


def a_race(kind, ways):
    """Answers of legs: ours takes 1 s a step, the others 2.5 s; two warm-up steps and three timed ones."""
    rows = {"sft": [(4, 2)], "dpo": [(4, 2, 3)]}[kind]
    slow = {"wall": 2.5, "cpu": 3.0, "peak_mb": 90.0, "loss": 1.0, "rows": rows, "slots": 20}
    fast = {"wall": 1.0, "cpu": 1.5, "peak_mb": 80.0, "loss": 1.00001, "rows": [], "slots": 0}
    start = {"wall": 9.0, "cpu": 9.0, "peak_mb": 50.0, "reference": {"wall": 5.0, "cpu": 5.0}}
    warm = [{**slow, "wall": 99.0, "loss": 3.0}, {**slow, "wall": 99.0}]
    answers = {way: [start, *warm, slow, slow, {**slow, "peak_mb": 95.0}] for way in ways}
    answers["ours"] = [{**start, "reference": {"wall": 1.0, "cpu": 2.0}}, {**fast, "loss": 3.00002}, fast, fast, fast, fast]
    return answers | {"matmul": [start, *[{"wall": 2.0, "cpu": 2.0, "peak_mb": 1.0, "flops": 40_000}] * 5]}


def test_figures_of_a_comparison():
    found = bench.comparison("sft", a_race("sft", ("ours", "stock", "helped")), SMALL)
    assert found["speedup"] == 2.5 and found["speedup_cpu"] == 2.0
    faster = {way: each.get("ours_is_faster") for way, each in found["ways"].items()}
    assert faster == {"ours": None, "stock": 2.5, "helped": 2.5}
    assert found["max_loss_difference"] == pytest.approx(2e-5)
    assert found["mfu"] == pytest.approx((6 * 460 + 36 * 36 + 400) / 20_000)
    ours, stock = found["ways"]["ours"], found["ways"]["stock"]
    assert ours["tokens_per_s"] == 6 and stock["tokens_per_s"] == 2.4
    assert stock["fill"] == 0.3 and stock["peak_mb"] == 95 and "fill" not in ours


def test_a_comparison_of_dpo_includes_the_reference_and_counts_a_prompt_once():
    found = bench.comparison("dpo", a_race("dpo", ("ours", "stock")), SMALL)
    assert found["speedup"] == 2.5
    assert found["speedup_with_reference"] == pytest.approx((5 + 99 + 99 + 7.5) / (1 + 5))
    assert found["speedup_with_reference_cpu"] == pytest.approx((5 + 5 * 3) / (2 + 5 * 1.5))
    assert found["mfu"] < found["mfu_as_stacked"] == pytest.approx((13 * 460 + 36 * 85 + 1000) / 20_000)


def test_the_document_has_the_targets_first_and_null_for_skipped_parts():
    found = {"sft": {"speedup": 2.123456, "max_loss_difference": 3e-7, "mfu": 0.5, "default": {"losses": [1.23456789]}}}
    written = json.loads(json.dumps(bench.document(found)))
    assert list(bench.TARGETS) == [
        "sft.speedup", "sft.max_loss_difference", "sft.mfu", "dpo.speedup", "dpo.max_loss_difference", "dpo.mfu",
        "generate.speedup", "prepare.speedup", "repro.cold_s", "repro.noop_s",
    ]  # fmt: skip
    assert set(bench.TARGETS) <= written.keys()
    assert written["sft.speedup"] == 2.1235 and written["repro.cold_s"] is None
    assert written["sft"]["default"]["losses"] == [1.23456789]


@pytest.mark.parametrize(
    ("value", "asked", "end"),
    [
        (2.0, ("at least", 2.0), "yes"),
        (1.9, ("at least", 2.0), "NO"),
        (1e-4, ("at most", 1e-4), "yes"),
        (2e-4, ("at most", 1e-4), "NO"),
        (None, ("at least", 2.0), "not run"),
        (0.4, None, "0.4"),
    ],
)
def test_verdicts(value, asked, end):
    assert bench.target_line("name", value, asked).endswith(end)


def test_a_stage_time_holds_what_passed_before_its_record():
    assert bench.stage_times({"load": 3.0, "total": 9.0}, 1.0) == {"seconds": 10.0, "startup_share": 0.4}
    assert bench.stage_times({"total": 3.0}, 1.0) == {"seconds": 4.0, "startup_share": 0.25}


@pytest.mark.slow
def test_a_leg_that_cannot_start_says_why():
    with Leg("ours", 1, kind="sft", way="ours", params="nowhere.yaml") as leg, pytest.raises(SystemExit, match="nowhere.yaml"):
        leg.go()


# ---- Growth ----------------------------------------------------------------------------------------------------------


def a_point(stage, grows, size, **changes):
    known = {"parameters": 1, "tokens_per_step": 1, "seconds": 1.0, "cpu_seconds": 1.0, "peak_mb": 500, "mfu": 0.5}
    return growth.Point(stage=stage, grows=grows, size=size, **{**known, "matmul_gflops": 100.0, **changes})


def test_expected_speeds_of_tinyllama():
    """At half of 100 GFLOP/s: 50 / 4.359 = 11.5 tokens/s. Activations: 384 MB over 16 * 192 tokens, times 168,960 / 3,776."""
    points = [a_point(stage, "width", 512) for stage in ("sft", "dpo")]
    points += [a_point("sft", "length", 64), a_point("sft", "length", 128), a_point("sft", "length", 256, peak_mb=884)]
    cpu, low, high, *eight = growth.expectations(points, threads=2)
    assert cpu["sft_tokens_per_s"] == "11.5" and cpu["weights_gb"] == "4.4" and cpu["share_of_products"] == "0.50"
    assert float(cpu["activations_mb_per_token"]) == pytest.approx(0.125 * 168_960 / 3_776, rel=0.02)
    assert float(high["sft_tokens_per_s"]) == pytest.approx(0.45 * 788e12 / 4.359e9, rel=0.01) and high["weights_gb"] == "2.2"
    pair = 600 * (4 * 968_884_224 + 6 * 12_615_680) + 3 * 90_112 * (2 * 400**2 - 200**2) + 4 * 400 * 65_536_000
    assert float(low["dpo_pairs_per_s"]) == pytest.approx(0.2 * 788e12 / pair, rel=0.01)
    for row, one in zip(eight, (low, high), strict=True):
        assert float(row["sft_tokens_per_s"]) / float(one["sft_tokens_per_s"]) == pytest.approx(8, rel=0.01)


def test_a_pass_is_measured_whole_and_a_step_by_its_median():
    start, products = {"wall": 4.0, "cpu": 3.0}, [{"wall": 1.0, "flops": 10_000}]
    steps = [{"wall": wall, "cpu": wall, "peak_mb": 70.4} for wall in (9.0, 9.0, 1.0, 2.0, 3.0)]
    answers = {"ours": steps, "matmul": products}
    a_pass = growth.point("sft", "rows", 10, SMALL, [(4, 2)] * 10, start, answers)
    a_step = growth.point("sft", "length", 6, SMALL, [(4, 2)] * 10, start, answers)
    assert (a_pass.seconds, a_pass.cpu_seconds, a_step.seconds) == (28.0, 27.0, 2.0)
    assert a_pass.tokens_per_step == 12 and a_pass.peak_mb == 70
    assert a_pass.mfu == a_step.mfu == pytest.approx(2 * (6 * 460 + 36 * 36 + 400) / 20_000, abs=0.0005)


@pytest.mark.skipif(not (ROOT / "docs" / "growth.csv").is_file(), reason="no growth was measured yet")
def test_the_tables_of_growth_are_those_of_its_files():
    text = growth_page.PAGE.read_text(encoding="utf-8")
    assert between("growth", growth_page.growth(), text) == text
    assert between("expected", growth_page.expected(), text) == text
    assert len(read_csv(growth_page.GROWTH)) == 2 * 3 * 3


# ---- Programs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_gpu_its_benchmark_says_so_in_one_line():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, ROOT / "benchmarks/gpu.py"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu: torch sees no CUDA device here, so nothing was measured\n"


@pytest.mark.slow
def test_the_gpu_benchmark_runs_to_its_end(monkeypatch, capsys):
    """With a tiny model on the CPU: every leg of every part, real trainers, equal losses."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gpu.main(gpu.argparse.Namespace(device="cpu", tiny=True))
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert "| sft, ours |" in said and "| dpo, stock |" in said and "| generate, ours |" in said
    for kind in ("sft", "dpo"):
        assert found[kind]["max_loss_difference"] <= 1e-4
        assert all(found[kind][way]["tokens_per_s"] > 0 and 0 < found[kind][way]["mfu"] < 1 for way in ("ours", "stock"))
    assert found["generate"]["ours"]["tokens_per_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", bench.STAGES)
def test_help_takes_less_than_half_a_second(stage, tmp_path):
    """CPU time, which other work on the machine changes least; the best of three."""

    def cpu_seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, ROOT / "src" / f"{stage}.py", "--help"], cwd=tmp_path, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.5


@pytest.mark.slow
def test_prepare_gives_the_ids_and_labels_of_stock_trl():
    """`speedup` compares both before it measures, and ends where they differ."""
    found = prepare_rows.speedup(size=40, runs=1)
    assert found["rows"] == 40 and found["stock_us"] > 0 and found["prepare_us"] > 0


@pytest.mark.slow
def test_intervals_have_the_coverage_that_they_were_chosen_by():
    for row in interval_coverage.table(20):
        assert row["found"] == pytest.approx(interval_coverage.EXPECTED[row["method"]][20], abs=0.0015), row["method"]
