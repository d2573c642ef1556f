// Voxels as the CUDA engine reads them, and as it stores them eight at a time.

#ifndef CTGPU_CUDA_VOXEL_H
#define CTGPU_CUDA_VOXEL_H

#include "../preprocess_math.h"

#ifdef __CUDACC__
#define CTGPU_DEVICE __device__ __forceinline__
#else
#define CTGPU_DEVICE inline
#endif

namespace ctgpu {

// ---- What is read ------------------------------------------------------------------------------

// Nothing that is read through this changes while the kernel runs.
template <class T>
CTGPU_DEVICE T read_only(const T *address) {
#ifdef __CUDACC__
    return __ldg(address);
#else
    return *address;
#endif
}

struct Half {};  // float16 as a voxel type; its values travel as bits

template <int BYTES>
struct BitsOf;
template <>
struct BitsOf<1> {
    using type = unsigned char;
};
template <>
struct BitsOf<2> {
    using type = unsigned short;
};
template <>
struct BitsOf<4> {
    using type = unsigned int;
};
template <>
struct BitsOf<8> {
    using type = unsigned long long;
};

template <class Voxel>
struct VoxelBits {
    using type = typename BitsOf<sizeof(Voxel)>::type;
};
template <>
struct VoxelBits<Half> {
    using type = unsigned short;
};

CTGPU_DEVICE unsigned char swapped(unsigned char x) { return x; }
CTGPU_DEVICE unsigned short swapped(unsigned short x) {
    return static_cast<unsigned short>(x << 8 | x >> 8);
}
CTGPU_DEVICE unsigned int swapped(unsigned int x) {
    return x << 24 | (x & 0xff00u) << 8 | (x >> 8 & 0xff00u) | x >> 24;
}
CTGPU_DEVICE unsigned long long swapped(unsigned long long x) {
    return static_cast<unsigned long long>(swapped(static_cast<unsigned int>(x))) << 32 |
           swapped(static_cast<unsigned int>(x >> 32));
}

// Step 1 of the contract: round to nearest even, which every conversion to float32 here does.
template <class Voxel>
struct ToFloat {
    static CTGPU_DEVICE float from(typename VoxelBits<Voxel>::type bits) {
        union {
            typename VoxelBits<Voxel>::type bits;
            Voxel value;
        } voxel;
        voxel.bits = bits;
        return static_cast<float>(voxel.value);
    }
};

#ifdef __CUDACC__
template <>
struct ToFloat<double> {
    static CTGPU_DEVICE float from(unsigned long long bits) {
        float value;  // PTX: see preprocess_math.h
        asm("cvt.rn.f32.f64 %0, %1;" : "=f"(value) : "d"(__longlong_as_double(bits)));
        return value;
    }
};

template <>
struct ToFloat<Half> {
    static CTGPU_DEVICE float from(unsigned short bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
};
#else
template <>
struct ToFloat<Half> {
    static inline float from(unsigned short bits) { return from_half(bits); }
};
#endif

// ---- What is stored ----------------------------------------------------------------------------

constexpr int VECTOR = 8;  // voxels of one store: 16 bytes, or 8 of uint8

#ifdef __CUDACC__
CTGPU_DEVICE unsigned int two_halves(float low, float high) {
    unsigned int bits;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#else
    asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
        : "=r"(bits)
        : "f"(low), "f"(high));
#endif
    return bits;
}
#else
inline unsigned int two_halves(float low, float high) {
    return to_half(low) | static_cast<unsigned int>(to_half(high)) << 16;
}
#endif

// What a word of the output holds, the first voxel in its low bits.
struct TwoBytes {
    using Bits = unsigned short;

    // Padding and nothing else.
    static CTGPU_DEVICE unsigned int filled(unsigned int pad) { return pad | pad << 16; }

    // The voxels of `word`, which are t and those after it; padding where they are not in
    // begin … end - 1.
    static CTGPU_DEVICE unsigned int within(int begin, int end, int t, unsigned int word,
                                            unsigned int pad) {
        const bool low = t >= begin && t < end;
        const bool high = t + 1 >= begin && t + 1 < end;
        return (low ? word & 0xffffu : pad) | (high ? word & 0xffff0000u : pad << 16);
    }
};

struct OneByte {
    using Bits = unsigned char;

    static CTGPU_DEVICE unsigned int filled(unsigned int pad) { return pad * 0x01010101u; }

    static CTGPU_DEVICE unsigned int within(int begin, int end, int t, unsigned int word,
                                            unsigned int pad) {
        unsigned int kept = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k)
            if (t + k >= begin && t + k < end)
                kept |= 0xffu << 8 * k;
        return (word & kept) | (filled(pad) & ~kept);
    }
};

// Step 8's rounding, of as many voxels as fill a word.
template <Stored STORED>
struct Output;

template <>
struct Output<Stored::float16> : TwoBytes {
    static CTGPU_DEVICE unsigned int word(const float *v) { return two_halves(v[0], v[1]); }
};

template <int G>
struct GridOutput : TwoBytes {
    static CTGPU_DEVICE unsigned int word(const float *v) {
        return two_halves(on_grid<G>(v[0]), on_grid<G>(v[1]));
    }
};

template <>
struct Output<Stored::float16_grid10> : GridOutput<10> {};

template <>
struct Output<Stored::float16_grid11> : GridOutput<11> {};

template <>
struct Output<Stored::bfloat16> : TwoBytes {
    static CTGPU_DEVICE unsigned int word(const float *v) {
        return to_bfloat(v[0]) | static_cast<unsigned int>(to_bfloat(v[1])) << 16;
    }
};

template <>
struct Output<Stored::int16> : TwoBytes {
    static CTGPU_DEVICE unsigned int word(const float *v) {
        return to_int16(v[0]) | static_cast<unsigned int>(to_int16(v[1])) << 16;
    }
};

template <>
struct Output<Stored::uint8> : OneByte {
    static CTGPU_DEVICE unsigned int word(const float *v) {
        return to_uint8(v[0]) | static_cast<unsigned int>(to_uint8(v[1])) << 8 |
               static_cast<unsigned int>(to_uint8(v[2])) << 16 |
               static_cast<unsigned int>(to_uint8(v[3])) << 24;
    }
};

// All words of a vector at once, to an address that is a multiple of their size.
#ifdef __CUDACC__
CTGPU_DEVICE void store_vector(void *out, const unsigned int (&words)[4]) {
    *static_cast<uint4 *>(out) = make_uint4(words[0], words[1], words[2], words[3]);
}

CTGPU_DEVICE void store_vector(void *out, const unsigned int (&words)[2]) {
    *static_cast<uint2 *>(out) = make_uint2(words[0], words[1]);
}
#else
template <int WORDS>
inline void store_vector(void *out, const unsigned int (&words)[WORDS]) {
    std::memcpy(out, words, sizeof words);
}
#endif

}  // namespace ctgpu

#endif
