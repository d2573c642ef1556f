"""Lanes of a warp, blocks of a grid, and what is counted of them."""

from __future__ import annotations

import numpy as np
import pytest

from support.running import run_cuda


def test_generic_addresses_reach_shared_local_and_global_memory() -> None:
    out, counts = run_cuda(
        "__shared__ int s[64]; int a[4]; for (int k = 0; k < 4; ++k) a[k ^ in[1]] = 10 * k;"
        "s[t] = i; __syncthreads(); const int *p = in[t] % 2 ? s : a; out[i] = p[in[t] % 4];"
    )
    t = np.arange(64)
    np.testing.assert_array_equal(out, np.where(t % 2, t % 4, 10 * (t % 4 ^ 1)))
    assert any(name.startswith("ld.u32") or name == "ld.local.u32" for name in counts.threads)


def test_lanes_exchange_values() -> None:
    t = np.arange(64)
    cases = {
        "__shfl_xor_sync(~0u, i, 5)": t ^ 5,
        "__shfl_sync(~0u, i, 7)": t // 32 * 32 + 7,
        "__shfl_sync(~0u, i, t + 1, 8)": t // 8 * 8 + (t + 1) % 8,
        "__shfl_up_sync(~0u, i, 3)": np.where(t % 32 < 3, t, t - 3),
        "__shfl_down_sync(~0u, i, 3, 16)": np.where(t % 16 > 12, t, t + 3),
        "__ballot_sync(~0u, t % 5 == 0)": np.where(t < 32, 0x42108421, 0x10842108),
        "__any_sync(~0u, t == 40)": t // 32,
        "__all_sync(~0u, t < 40)": 1 - t // 32,
        "__popc(__activemask())": t * 0 + 32,
    }
    for expression, wanted in cases.items():
        out, _ = run_cuda(f"out[i] = {expression};")
        np.testing.assert_array_equal(out, wanted, err_msg=expression)


def test_lanes_that_part_meet_again() -> None:
    out, counts = run_cuda(
        "int x = i; for (int k = 0; k < t % 4; ++k) { if (x & 1) x = 3 * x + 1; else x /= 2; }"
        "out[i] = x + __popc(__activemask());"
    )

    def collatz(i: int) -> int:
        x = i
        for _ in range(i % 4):
            x = 3 * x + 1 if x & 1 else x // 2
        return x + 32

    np.testing.assert_array_equal(out, [collatz(i) for i in range(64)])
    assert counts.warps["st.global.u32"] == 2
    assert counts.threads["st.global.u32"] == 64


def test_a_grid_and_a_block_of_three_dimensions() -> None:
    out, _ = run_cuda(
        "const int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);"
        "const int u = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);"
        "out[b * 12 + u] = 100 * b + u;",
        blocks=(2, 1, 2),  # type: ignore[arg-type]
        threads=(2, 3, 2),  # type: ignore[arg-type]
        size=48,
    )
    np.testing.assert_array_equal(out, [100 * b + u for b in range(4) for u in range(12)])


def test_instructions_are_counted_as_threads_and_warps_execute_them() -> None:
    kernel_threads = 40  # a warp and a quarter
    _, counts = run_cuda("if (t < 3) out[i] = in[i];", threads=kernel_threads)
    assert counts.threads["st.global.u32"] == 3
    assert counts.warps["st.global.u32"] == 1
    assert counts.threads["ret"] == kernel_threads
    assert counts.warps["ret"] == 2


#: What the lanes of one warp read of shared memory, and the passes that this takes: as many as the
#: different words that they want of one bank.
READS = {
    "a word each, side by side": ("s[t]", 1),
    "in reverse": ("s[31 - t]", 1),
    "one word for all": ("s[in[5]]", 1),
    "one word for two": ("s[t / 2]", 1),
    "every second word": ("s[2 * t]", 2),
    "two words of every other bank": ("s[t / 2 + t % 2 * 32]", 2),
    "every third word": ("s[3 * t]", 1),
    "every fourth word": ("s[4 * t]", 4),
    "a column of 32 by 32": ("s[32 * t]", 32),
    "a column of 32 by 33": ("s[33 * t]", 1),
    "a column, by eight lanes": ("t < 8 ? s[32 * t] : 0", 8),
    "bytes of the same words": ("reinterpret_cast<char *>(s)[t]", 1),
    "bytes of a column": ("reinterpret_cast<char *>(s)[128 * t]", 32),
    "eight bytes each": ("static_cast<int>(reinterpret_cast<long long *>(s)[t] >> 32)", 2),
    "sixteen bytes each": ("static_cast<int>(sum(reinterpret_cast<int4 *>(s)[t]))", 4),
    "through a generic address": ("*(in[t] < 0 ? in + t : s + 2 * t)", 2),
}


@pytest.mark.parametrize("what", READS)
def test_a_read_of_shared_memory_takes_a_pass_for_every_word_of_a_bank(what: str) -> None:
    read, passes = READS[what]
    _, counts = run_cuda(
        "__shared__ __align__(16) int s[33 * 32];"
        f"for (int k = t; k < 33 * 32; k += 32) s[k] = k; __syncthreads(); out[i] = {read};",
        threads=32,
        outside="__device__ int sum(int4 v) { return v.x ^ v.y ^ v.z ^ v.w; }",
    )
    taken = {name: n for name, n in counts.wavefronts.items() if name.startswith("ld")}
    assert sum(taken.values()) == passes, counts
    # Those that fill it, side by side.
    assert counts.wavefronts.total() - passes == 33


def test_passes_of_shared_stores_add_up_over_warps_and_blocks() -> None:
    body = "__shared__ int s[64 * 4]; s[4 * t] = i; __syncthreads(); out[i] = s[4 * (63 - t)];"
    _, counts = run_cuda(body, blocks=3, size=192)
    stores = [name for name in counts.wavefronts if name.startswith("st.")]
    assert [counts.warps[name] for name in stores] == [3 * 2]
    assert [counts.wavefronts[name] for name in stores] == [3 * 2 * 4]


def test_global_and_local_memory_take_no_pass_of_shared_memory() -> None:
    _, counts = run_cuda(
        "int a[8]; for (int k = 0; k < 8; ++k) a[k ^ in[1]] = k; out[i] = a[in[t % 8]] + in[i];"
    )
    assert any(name.startswith("ld.local") for name in counts.warps)
    assert not counts.wavefronts
