"""Every fault that the machine is to find is found, and its sound twin passes."""

from __future__ import annotations

import numpy as np
import pytest

from support.ptx import Buffer, KernelFault, UnknownInstructionError
from support.running import assembled, compiled, run_cuda

SHARED = "__shared__ int s[64];"
#: What ``__ldg`` is, where the compiler cannot know better.
LDG = 'asm volatile("ld.global.nc.s32 %0, [%1];" : "=r"(x) : "l"({} + i));'

#: What is wrong, the kernel that does it, and its twin that does it right.
FAULTS = {
    "a store after the end": ("out of bounds", "out[i + 1] = i;", "out[i] = i;"),
    "a store before the beginning": ("out of bounds", "out[i - 1] = i;", "out[i] = i;"),
    "a store far away": ("out of bounds", "out[i + (1ll << 40)] = i;", "out[i] = i;"),
    "a load after the end": ("out of bounds", "out[i] = in[i + n];", "out[i] = in[i];"),
    "a vector that sticks out": (
        "out of bounds",
        "out[i] = reinterpret_cast<const int4 *>(in)[n / 4].w;",
        "out[i] = reinterpret_cast<const int4 *>(in)[n / 4 - 1].w;",
    ),
    "a null pointer": (
        "out of bounds",
        "out[i] = *reinterpret_cast<const int *>(static_cast<long long>(in[0]));",
        "out[i] = *(in + static_cast<long long>(in[0]));",
    ),
    "shared memory beyond its end": (
        "out of bounds",
        f"{SHARED} s[t + 1] = i; __syncthreads(); out[i] = s[t + 1];",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[t];",
    ),
    "one shared variable into the next": (
        "out of bounds",
        "__shared__ int a[64], b[64]; volatile int *p = a; p[t] = i; b[t] = i; __syncthreads();"
        "out[i] = p[t + 1] + b[63 - t];",
        "__shared__ int a[64], b[64]; volatile int *p = a; p[t] = i; b[t] = i; __syncthreads();"
        "out[i] = p[63 - t] + b[63 - t];",
    ),
    "local memory beyond its end": (
        "out of bounds",
        "int a[8]; for (int k = 0; k < 8; ++k) a[k ^ in[1]] = k; out[i] = a[in[8 + t % 2]];",
        "int a[8]; for (int k = 0; k < 8; ++k) a[k ^ in[1]] = k; out[i] = a[in[6 + t % 2]];",
    ),
    "an int off its alignment": (
        "misaligned",
        "out[i] = *reinterpret_cast<const int *>(reinterpret_cast<const char *>(in) + 2 + t);",
        "out[i] = *reinterpret_cast<const int *>(reinterpret_cast<const char *>(in) + 4 * t);",
    ),
    "a vector off its alignment": (
        "misaligned",
        "const int4 v = *reinterpret_cast<const int4 *>(in + 2); out[i] = v.x + v.y + v.z + v.w;",
        "const int4 v = *reinterpret_cast<const int4 *>(in + 4); out[i] = v.x + v.y + v.z + v.w;",
    ),
    "a store to what is read-only": (
        "write to read-only memory",
        "const_cast<int *>(in)[i] = i; out[i] = i;",
        "out[i] = in[i];",
    ),
    "a store to what __ldg reads": (
        "write to memory that the kernel reads as read-only",
        f"out[i] = i; int x; {LDG.format('out')} out[i] = x;",
        f"out[i] = i; int x; {LDG.format('in')} out[i] = x;",
    ),
    "__ldg before a store": (
        "write to memory that the kernel reads as read-only",
        f"int x; {LDG.format('out')} __syncthreads(); out[i] = i;",
        f"int x; {LDG.format('in')} __syncthreads(); out[i] = i;",
    ),
    "a neighbour read without a barrier": (
        "race",
        f"{SHARED} s[t] = i; out[i] = s[63 - t];",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[63 - t];",
    ),
    "a neighbour overwritten without a barrier": (
        "race",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[63 - t]; s[t] = -i;",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[63 - t]; __syncthreads(); s[t] = -i;",
    ),
    "read by many, then overwritten by one of them": (
        "race",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[5]; if (t == 63) s[5] = 0;",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[5]; __syncthreads();"
        "if (t == 63) s[5] = 0;",
    ),
    "two that write to one place": (
        "race",
        f"{SHARED} s[t / 2] = i; __syncthreads(); out[i] = s[t / 2];",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[t];",
    ),
    "bytes of one word are no race, the same byte is": (
        "race",
        "__shared__ char c[64]; c[t & 62] = 1; __syncthreads(); out[i] = c[t & 62];",
        "__shared__ char c[64]; c[t] = 1; __syncthreads(); out[i] = c[63 - t];",
    ),
    "two threads and one place of global memory": ("race", "out[i / 2] = i;", "out[i] = i;"),
    "lanes of a warp without __syncwarp": (
        "race",
        f"{SHARED} s[t] = i; out[i] = s[t ^ 1];",
        f"{SHARED} s[t] = i; __syncwarp(); out[i] = s[t ^ 1];",
    ),
    "__syncwarp between two warps": (
        "race",
        f"{SHARED} s[t] = i; __syncwarp(); out[i] = s[t ^ 32];",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[t ^ 32];",
    ),
    "a barrier for half a warp": (
        "divergent barrier",
        f"{SHARED} if (t < 16) {{ s[t] = 1; __syncthreads(); }} out[i] = i;",
        f"{SHARED} if (t < 16) s[t] = 1; __syncthreads(); out[i] = i;",
    ),
    "a barrier for one warp": (
        "divergent barrier",
        f"{SHARED} if (t < 32) {{ s[t] = 1; __syncthreads(); }} out[i] = i;",
        f"{SHARED} if (n < 32) {{ s[t] = 1; __syncthreads(); }} out[i] = i;",
    ),
    "a thread that left before the barrier": (
        "divergent barrier",
        f"{SHARED} if (t == 40) return; s[t] = i; __syncthreads(); out[i] = s[t];",
        f"{SHARED} s[t] = i; __syncthreads(); if (t == 40) return; out[i] = s[t];",
    ),
    "as many barriers, not the same": (
        "divergent barrier",
        f"{SHARED} if (t < 16) {{ s[t] = 1; __syncthreads(); out[i] = s[15 - t]; }}"
        f"else {{ s[t] = 2; __syncthreads(); out[i] = s[79 - t] * 3; }}",
        f"{SHARED} if (t < 16) s[t] = 1; else s[t] = 2; __syncthreads(); out[i] = s[63 - t];",
    ),
    "a loop with a barrier that some leave early": (
        "divergent barrier",
        f"{SHARED} for (int k = 0; k < 2 + (t & 1); ++k) {{ s[t] = k; __syncthreads(); }}",
        f"{SHARED} for (int k = 0; k < 2 + (n & 1); ++k) {{ s[t] = k; __syncthreads(); }}",
    ),
    "shared memory that nobody wrote": (
        "unwritten store",
        f"{SHARED} if (t < 63) s[t] = i; __syncthreads(); out[i] = s[t] + 1;",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = s[t] + 1;",
    ),
    "shared memory of the block before": (
        "unwritten store",
        f"{SHARED} if (i < n) s[t] = i; __syncthreads(); if (i >= n) out[t] = s[t];",
        f"{SHARED} s[t] = i; __syncthreads(); if (i >= n) out[t] = s[t];",
    ),
    "global memory that nobody wrote": ("unwritten store", "out[i] = out[i] + 1;", "out[i] = 1;"),
    "local memory that nobody wrote": (
        "unwritten store",
        "int a[8]; for (int k = in[1]; k < 8; ++k) a[k] = k; out[i] = a[in[t % 8]];",
        "int a[8]; for (int k = in[0]; k < 8; ++k) a[k] = k; out[i] = a[in[t % 8]];",
    ),
    "a branch by what nobody wrote": (
        "unwritten branch",
        f"{SHARED} if (t) s[t] = i; __syncthreads(); if (s[t] > 5) out[i] = in[i];",
        f"{SHARED} s[t] = i; __syncthreads(); if (s[t] > 5) out[i] = in[i];",
    ),
    "an address that nobody wrote": (
        "unwritten address",
        f"{SHARED} if (t) s[t] = i; __syncthreads(); out[i] = in[s[t]];",
        f"{SHARED} s[t] = i; __syncthreads(); out[i] = in[s[t]];",
    ),
    "what half a value does not know": (
        "unwritten store",
        "__shared__ short h[128]; h[2 * t] = i; __syncthreads();"
        "out[i] = reinterpret_cast<int *>(h)[t];",
        "__shared__ short h[128]; h[2 * t] = i; __syncthreads();"
        "out[i] = reinterpret_cast<int *>(h)[t] & 0xffff;",
    ),
    "a shuffle with lanes that are elsewhere": (
        "divergent warp",
        "if (t & 1) out[i] = __shfl_xor_sync(~0u, i, 2); else out[i] = -i;",
        "if (t & 1) out[i] = __shfl_xor_sync(0xaaaaaaaau, i, 2); else out[i] = -i;",
    ),
    "a shuffle from a lane that takes no part": (
        "unwritten store",
        "if (t & 1) out[i] = __shfl_xor_sync(0xaaaaaaaau, i, 1); else out[i] = -i;",
        "out[i] = __shfl_xor_sync(~0u, i, 1);",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_sound_twin_passes(name: str) -> None:
    kind, faulty, sound = FAULTS[name]
    blocks = 2 if "block" in name else 1
    run_cuda(sound, blocks=blocks)
    with pytest.raises(KernelFault) as caught:
        run_cuda(faulty, blocks=blocks)
    assert caught.value.kind == kind
    assert f"thread {caught.value.thread} of block {caught.value.block}" in str(caught.value)
    assert f"PTX line {caught.value.line}: " in str(caught.value)


def test_blocks_that_write_to_one_place_race_whatever_barriers_they_pass() -> None:
    run_cuda("__syncthreads(); out[i] = t;", threads=32, blocks=2)
    with pytest.raises(
        KernelFault,
        match=r"race: thread 0 of block 1 .* \(byte 0 of out\) that a thread of another block",
    ):
        run_cuda("__syncthreads(); out[t] = t;", threads=32, blocks=2)
    with pytest.raises(KernelFault, match="race"):
        run_cuda("if (!blockIdx.x) out[t] = t; else out[i] = out[t];", threads=32, blocks=2)


def test_a_read_by_another_block_is_not_forgotten_at_a_barrier() -> None:
    body = (
        "int x = *(volatile int *)out; __syncthreads(); x += *(volatile int *)out; __syncthreads();"
        "if (blockIdx.x == {} && t == 0) out[0] = x;"
    )
    for blocks, fault in ((1, None), (2, "race")):
        out = Buffer(np.ones(64, np.int32), name="out")
        arguments = [np.uint64(out.address), np.uint64(0), np.int32(64)]
        kernel = compiled(body.format(blocks - 1))
        if fault is None:
            kernel.launch(blocks, 32, arguments, [out])
            continue
        with pytest.raises(KernelFault, match=r"race: .* another block"):
            kernel.launch(blocks, 32, arguments, [out])


def test_a_barrier_orders_global_memory_within_its_block() -> None:
    out, _ = run_cuda(
        "out[i] = i; __syncthreads(); const int x = *(volatile int *)(out + 63 - t);"
        "__syncthreads(); out[i] = x;"
    )
    np.testing.assert_array_equal(out, np.arange(64)[::-1])


def test_what_nobody_wrote_may_be_read_where_it_does_not_matter() -> None:
    out, _ = run_cuda(
        f"{SHARED} if (t % 2) s[t] = i; __syncthreads(); const int x = s[t];"
        "out[i] = t % 2 ? x : -1;"
    )
    np.testing.assert_array_equal(out, np.where(np.arange(64) % 2, np.arange(64), -1))


def test_a_register_that_nobody_wrote_is_as_unknown_as_memory() -> None:
    out, given = Buffer.blank(1, np.uint64), Buffer(np.zeros(4, np.uint64))
    arguments = [np.uint64(out.address), np.uint64(given.address)]
    with pytest.raises(KernelFault, match="unwritten store"):
        assembled("st.global.u32 [%rd1], %r5;").launch(1, 1, arguments, [out, given])
    assembled("mov.u32 %r5, 7; st.global.u32 [%rd1], %r5;").launch(1, 1, arguments, [out, given])
    assert not out.is_written  # four of its bytes are
    assembled("mov.u64 %rd5, 7; st.global.u64 [%rd1], %rd5;").launch(1, 1, arguments, [out, given])
    assert out.is_written
    # A guard decides, also where nothing branches.
    with pytest.raises(KernelFault, match="unwritten branch"):
        assembled("@%p5 st.global.u64 [%rd1], %rd1;").launch(1, 1, arguments, [out, given])
    with pytest.raises(KernelFault, match="unwritten branch"):
        assembled("setp.eq.s32 %p5, %r5, 0; @!%p5 bra L; st.global.u64 [%rd1], %rd1; L:").launch(
            1, 1, arguments, [out, given]
        )


def test_known_bits_of_a_register_stay_known() -> None:
    kernel = assembled(
        "ld.global.u32 %r1, [%rd2]; and.b32 %r2, %r1, 0xff; and.b32 %r3, %r5, 0xff00;"
        "or.b32 %r4, %r2, %r3; shl.b32 %r4, %r4, 16; shr.u32 %r4, %r4, 16;"
        "prmt.b32 %r6, %r4, 0, 0x4440; cvt.u64.u32 %rd3, %r6; st.global.u64 [%rd1], %rd3;"
    )
    out, given = Buffer.blank(1, np.uint64), Buffer(np.full(4, 0x1234, np.uint64))
    kernel.launch(1, 1, [np.uint64(out.address), np.uint64(given.address)], [out, given])
    assert out.array[0] == 0x34


@pytest.mark.parametrize(
    "code",
    [
        "add.s32 %r4, %r1, %r3;",
        "sub.s32 %r4, %r1, %r3;",
        "mul.lo.s32 %r4, %r1, %r3;",
        "mad.lo.s32 %r4, %r3, %r3, %r1;",
        "neg.s32 %r4, %r3;",
    ],
)
def test_unknown_bits_are_carried_up_and_not_down(code: str) -> None:
    """Of %r3, the lower half is known."""
    out, given = Buffer.blank(1, np.uint64), Buffer(np.full(4, 0x1235, np.uint64))
    arguments = [np.uint64(out.address), np.uint64(given.address)]
    sum_of = f"ld.global.u32 %r1, [%rd2]; shl.b32 %r2, %r5, 16; or.b32 %r3, %r2, %r1; {code}"
    assembled(f"{sum_of} st.global.u16 [%rd1], %r4;").launch(1, 1, arguments, [out, given])
    with pytest.raises(KernelFault, match="unwritten store"):
        assembled(f"{sum_of} st.global.u32 [%rd1], %r4;").launch(1, 1, arguments, [out, given])


def test_a_call_of_what_was_not_inlined_is_named() -> None:
    for body in ('if (i > n) printf("%d", i);', "out[i] = helper(i);"):
        with pytest.raises(
            UnknownInstructionError, match=r"PTX line \d+: `st.param.b\d+ .* inlined"
        ):
            run_cuda(body, outside="__noinline__ __device__ int helper(int x) { return 3 * x; }")
    with pytest.raises(UnknownInstructionError, match=r"`call\.uni nothing` .* inlined"):
        assembled("call.uni nothing;", outside=".func nothing() { ret; }\n")


def test_an_endless_loop_ends() -> None:
    body = "while (*(volatile int *)in == 0); out[i] = i;"
    with pytest.raises(KernelFault, match=r"endless: .* still runs"):
        run_cuda(body, most_operations=10_000)


def test_the_message_names_what_lies_near() -> None:
    with pytest.raises(KernelFault, match=r"thread 63 of block 0 .*, 0 bytes after the end of out"):
        run_cuda("out[i + 1] = i;")
    with pytest.raises(KernelFault, match=r"writes 4 bytes at 0x\w+, byte 0 of in"):
        run_cuda("const_cast<int *>(in)[i] = i;")
    with pytest.raises(KernelFault, match=r"waits at a barrier that thread 16 does not reach"):
        run_cuda(FAULTS["a barrier for half a warp"][1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 0}, r"a block may have 1 to 1024"),
        ({"threads": 1025}, r"\(1025, 1, 1\) threads"),
        ({"blocks": 0}, r"\(0, 1, 1\) blocks"),
    ],
)
def test_a_launch_that_no_gpu_takes_is_refused(change: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_cuda("out[i] = i;", **change)


def test_arguments_must_be_as_wide_as_the_parameters() -> None:
    kernel = compiled("out[i] = i;")
    for wrong in ([np.uint64(0)], [np.uint64(0), np.uint64(0), np.int64(0)], []):
        with pytest.raises(ValueError, match=r"where kernel takes \[8, 8, 4\]"):
            kernel.launch(1, 32, wrong, [])
