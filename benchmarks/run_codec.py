import runpy
import sys

sys.path.append(sys.path[0] + "/..")
runpy.run_module("benchmarks", run_name=__name__)
