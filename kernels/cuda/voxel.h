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

// So many bytes behind an address.
template <class T>
CTGPU_DEVICE const T *bytes_behind(const T *address, long long bytes) {
    return reinterpret_cast<const T *>(reinterpret_cast<const char *>(address) + bytes);
}

// What all threads of a warp have alike, known as such to the compiler.
CTGPU_DEVICE int same_in_warp(int value) {
#ifdef __CUDACC__
    return __shfl_sync(0xffffffffu, value, 0);
#else
    return value;
#endif
}

// Of each of two signed 16-bit numbers in a word.
#ifdef __CUDACC__
CTGPU_DEVICE unsigned int smaller_pair(unsigned int a, unsigned int b) {
    unsigned int result;
    asm("min.s16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
CTGPU_DEVICE unsigned int larger_pair(unsigned int a, unsigned int b) {
    unsigned int result;
    asm("max.s16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
#else
inline unsigned int each_of_pair(unsigned int a, unsigned int b, bool larger) {
    unsigned int result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto x = static_cast<std::int16_t>(a >> shift),
                   y = static_cast<std::int16_t>(b >> shift);
        result |= static_cast<unsigned int>(static_cast<std::uint16_t>((x < y) != larger ? x : y))
                  << shift;
    }
    return result;
}
inline unsigned int smaller_pair(unsigned int a, unsigned int b) {
    return each_of_pair(a, b, false);
}
inline unsigned int larger_pair(unsigned int a, unsigned int b) { return each_of_pair(a, b, true); }
#endif

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

// The least and the largest of two signed 16-bit numbers, each twice in a word.
struct PairLimits {
    unsigned int lo, hi;
};

// Four voxels of so many bytes that lie together in memory, on a multiple of their size.
template <int BYTES>
struct Quad {
    unsigned int words[BYTES];

    static CTGPU_DEVICE Quad read(const void *address) {
        Quad quad;
#ifdef __CUDACC__
        if constexpr (BYTES == 1) {
            quad.words[0] = __ldg(static_cast<const unsigned int *>(address));
        } else if constexpr (BYTES == 2) {
            const uint2 read = __ldg(static_cast<const uint2 *>(address));
            quad.words[0] = read.x, quad.words[1] = read.y;
        } else {
#pragma unroll
            for (int n = 0; n < BYTES; n += 4) {
                const uint4 read = __ldg(static_cast<const uint4 *>(address) + n / 4);
                quad.words[n] = read.x, quad.words[n + 1] = read.y;
                quad.words[n + 2] = read.z, quad.words[n + 3] = read.w;
            }
        }
#else
        std::memcpy(quad.words, address, sizeof quad.words);
#endif
        return quad;
    }

    template <class Bits>
    CTGPU_DEVICE Bits voxel(int n) const {
        if constexpr (BYTES == 8)
            return words[2 * n] | static_cast<Bits>(words[2 * n + 1]) << 32;
        else
            return static_cast<Bits>(words[n * BYTES / 4] >> n * BYTES % 4 * 8);
    }

    // Steps 2 and 3 of the contract where these give what clipping the voxels themselves does.
    CTGPU_DEVICE void clip_pairs(const PairLimits &limits) {
        static_assert(BYTES == 2, "pairs are of 16 bits");
#pragma unroll
        for (int n = 0; n < BYTES; ++n)
            words[n] = smaller_pair(larger_pair(words[n], limits.lo), limits.hi);
    }
};

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

// The bits of voxels begin … end - 1 of a vector with so many voxels in a word.
template <int OF_WORD, int WORDS>
CTGPU_DEVICE void keep_of(unsigned int (&words)[WORDS], int begin, int end) {
#pragma unroll
    for (int n = 0; n < WORDS; ++n)
        words[n] = ~0u;
    if (begin <= 0 && end >= WORDS * OF_WORD)
        return;
    constexpr unsigned int ONE = ~0u >> (32 - 32 / OF_WORD);
#pragma unroll
    for (int n = 0; n < WORDS; ++n) {
        words[n] = 0;
#pragma unroll
        for (int k = 0; k < OF_WORD; ++k)
            if (n * OF_WORD + k >= begin && n * OF_WORD + k < end)
                words[n] |= ONE << k * (32 / OF_WORD);
    }
}

// The first `count` voxels of a vector, one by one.
template <int OF_WORD, int WORDS, class Bits>
CTGPU_DEVICE void store_some(Bits *to, const unsigned int (&words)[WORDS], int count) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(count));  // else the loop around this keeps what is compared with it
#endif
#pragma unroll
    for (int k = 0; k < WORDS * OF_WORD; ++k)
        if (k < count)
            to[k] = static_cast<Bits>(words[k / OF_WORD] >> k % OF_WORD * (32 / OF_WORD));
}

// What a word of the output holds, the first voxel in its low bits.
struct TwoBytes {
    using Bits = unsigned short;
    static constexpr int WORDS = VECTOR / 2;

    // Padding and nothing else.
    static CTGPU_DEVICE unsigned int filled(unsigned int pad) { return pad | pad << 16; }

    // The bits of voxels begin … end - 1 of a vector.
    static CTGPU_DEVICE void keep(unsigned int (&words)[WORDS], int begin, int end) {
        keep_of<2>(words, begin, end);
    }

    // The first `count` voxels, to any address.
    static CTGPU_DEVICE void store_part(Bits *to, const unsigned int (&words)[WORDS], int count) {
        store_some<2>(to, words, count);
    }
};

struct OneByte {
    using Bits = unsigned char;
    static constexpr int WORDS = VECTOR / 4;

    static CTGPU_DEVICE unsigned int filled(unsigned int pad) { return pad * 0x01010101u; }
    static CTGPU_DEVICE void keep(unsigned int (&words)[WORDS], int begin, int end) {
        keep_of<4>(words, begin, end);
    }
    static CTGPU_DEVICE void store_part(Bits *to, const unsigned int (&words)[WORDS], int count) {
        store_some<4>(to, words, count);
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
