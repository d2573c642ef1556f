// The arithmetic of one voxel, shared by the C++ and the CUDA engine.
//
// One output voxel, from the eight source voxels around it:
//
//   1. x    = float32(voxel)                             round to nearest even
//   2. hu   = fma(slope, x, intercept)                   skipped where slope = 1, intercept = 0
//   3. c    = min(max(hu, clip_lo), clip_hi)             where the spec clips before resampling
//   4. D    : v_hw = lerp(c_hw0, c_hw1, w_d)             four blends along D
//   5. W    : v_h  = lerp(v_h0,  v_h1,  w_w)             two along W
//   6. H    : v    = lerp(v_0,   v_1,   w_h)             one along H
//   7. v    = min(max(v, clip_lo), clip_hi)              where the spec clips after resampling
//   8. out  = stored(fma(v, scale, offset))              round to nearest even
//
//   lerp(a, b, w) = fma(w, b - a, a)
//   stored is float16 or bfloat16; or int16 or uint8, which end at their least and largest value;
//   or, where the spec has a precision of 2^-g, float16 of the nearest multiple of that:
//
//     r   = rint(fma(v, scale, offset) * 2^g)            of two whole numbers as near the even one
//     out = float16(fma(r, 2^-g, +0))                    the fma is exact, and never gives -0
//
// Every fma is written as one and contraction is off in all compilers, so that scalar, SIMD and
// CUDA code give the same bits.  Reordering any of this changes every shard ever written: it needs
// a new ARITHMETIC_VERSION in ctgpu/spec/contract.py.

#ifndef CTGPU_PREPROCESS_MATH_H
#define CTGPU_PREPROCESS_MATH_H

#ifdef __CUDACC__
#define CTGPU_INLINE __device__ __forceinline__
#else
#include <cstdint>
#include <cstring>
// static: each translation unit keeps its own copy, for it may be compiled for another CPU.
#define CTGPU_INLINE static inline
#endif

namespace ctgpu {

// What the voxels of the output are; float16_grid10 and 11 with g = 10 and 11.
enum class Stored { float16, bfloat16, int16, uint8, float16_grid10, float16_grid11 };

// What is done to every voxel of one volume.
struct Intensity {
    float slope, intercept;  // step 2
    float clip_lo, clip_hi;  // steps 3 and 7
    float scale, offset;     // step 8
    int rescales;            // whether step 2 is done
    int clips_before;        // step 3 is done, or else step 7
};

#ifdef __CUDACC__
// PTX, since CuPy compiles with -ftz=true, which flushes subnormals in anything else.
CTGPU_INLINE float fused(float a, float b, float c) {
    float result;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
    return result;
}
CTGPU_INLINE float minus(float a, float b) {
    float result;
    asm("sub.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
// Two instructions.  They differ from the comparisons below for NaN, which no engine sees, and in
// the sign of a zero that equals a limit, which step 8 loses: the offset is not -0.0 then.
CTGPU_INLINE float clip(float v, float lo, float hi) {
    float above, result;
    asm("max.f32 %0, %1, %2;" : "=f"(above) : "f"(v), "f"(lo));
    asm("min.f32 %0, %1, %2;" : "=f"(result) : "f"(above), "f"(hi));
    return result;
}
#else
CTGPU_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
CTGPU_INLINE float minus(float a, float b) { return a - b; }
CTGPU_INLINE float clip(float v, float lo, float hi) {
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}
#endif

CTGPU_INLINE float lerp(float a, float b, float w) { return fused(w, minus(b, a), a); }

// Steps 2 and 3.
CTGPU_INLINE float load_hu(float x, const Intensity &p) {
    if (p.rescales)
        x = fused(p.slope, x, p.intercept);
    return p.clips_before ? clip(x, p.clip_lo, p.clip_hi) : x;
}

// Step 7 and the fma of step 8.
CTGPU_INLINE float normalise(float v, const Intensity &p) {
    if (!p.clips_before)
        v = clip(v, p.clip_lo, p.clip_hi);
    return fused(v, p.scale, p.offset);
}

// The nearest whole number, of two the even one.
#ifdef __CUDACC__
CTGPU_INLINE int nearest(float v) {
    int result;
    asm("cvt.rni.s32.f32 %0, %1;" : "=r"(result) : "f"(v));
    return result;
}
#else
CTGPU_INLINE int nearest(float v) { return static_cast<int>(__builtin_nearbyintf(v)); }
#endif

// The nearest multiple of 2^-G, of two the even one.  Products by a power of two are exact; one
// that is infinite stays so, as x would in float16.
template <int G>
CTGPU_INLINE float on_grid(float x) {
    constexpr float UNITS = 1 << G, UNIT = 1.0f / UNITS;
#ifdef __CUDACC__
    float whole;
    asm("cvt.rni.f32.f32 %0, %1;" : "=f"(whole) : "f"(fused(x, UNITS, 0.0f)));
#else
    const float whole = __builtin_nearbyintf(x * UNITS);
#endif
    return fused(whole, UNIT, 0.0f);
}

// Of no NaN, which no engine sees.
CTGPU_INLINE unsigned short to_bfloat(float value) {
#ifdef __CUDACC__
    const unsigned int bits = __float_as_uint(value);
#else
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
#endif
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

CTGPU_INLINE unsigned short to_int16(float value) {
    return static_cast<unsigned short>(nearest(clip(value, -32768.0f, 32767.0f)));
}

CTGPU_INLINE unsigned char to_uint8(float value) {
    return static_cast<unsigned char>(nearest(clip(value, 0.0f, 255.0f)));
}

#ifndef __CUDACC__
// float32 to float16 bits, round to nearest even, as F16C, NEON and CUDA do it.
CTGPU_INLINE std::uint16_t to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)  // NaN: made quiet, its payload cut
        return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
    if (magnitude >= 0x477ff000u)
        return static_cast<std::uint16_t>(sign | 0x7c00u);  // overflow
    if (magnitude < 0x38800000u) {  // subnormal: let the addition of 0.5 do the rounding
        float shifted;
        std::memcpy(&shifted, &magnitude, sizeof shifted);
        shifted += 0.5f;
        std::uint32_t rounded;
        std::memcpy(&rounded, &shifted, sizeof rounded);
        return static_cast<std::uint16_t>(sign | (rounded - 0x3f000000u));
    }
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

// float16 bits to float32, exactly.
CTGPU_INLINE float from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16;
    std::uint32_t bits = (half & 0x7fffu) << 13;
    if (bits >= 0x0f800000u)
        bits += 0x70000000u;  // infinity and NaN
    else if (bits >= 0x00800000u)
        bits += 0x38000000u;
    else {  // subnormal: a small whole number times 2^-24
        const float value = static_cast<float>(half & 0x3ffu) * 0x1p-24f;
        std::memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
#endif

}  // namespace ctgpu

#endif
