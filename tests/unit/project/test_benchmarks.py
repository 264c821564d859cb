"""Every benchmark is one that `make bench` runs."""

from pathlib import Path

from tests.benchmarks.run_all import BENCHMARKS, FOLDER, command


def test_make_bench_knows_every_benchmark(tmp_path: Path) -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"run_all"}
    assert files == {benchmark.name for benchmark in BENCHMARKS}
    for benchmark in BENCHMARKS:
        call = command(benchmark, tmp_path, quick=True)
        assert call is None or Path(call[1]).is_file()
        assert call is not None or benchmark.needs
