import runpy
import sys

sys.path += [f"{sys.path[0]}/../{at}" for at in ("", "tests", "tests/gpu")]
runpy.run_module("benchmarks", run_name=__name__)
