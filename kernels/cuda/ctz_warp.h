// A warp as one program: numbers that every lane has one of, and what lanes do together.
//
// On a device a lane's number is an ordinary variable of its thread.  For the host it is an array
// of all 32, so that the same source runs there one instruction of the warp after the other.
// Branches are on numbers that all lanes share, never on these.

#ifndef CTGPU_CUDA_CTZ_WARP_H
#define CTGPU_CUDA_CTZ_WARP_H

#include "../codec/ctz.h"

#ifdef __CUDACC__
#define CTGPU_WARP __device__ __forceinline__
#else
#include <cstring>
#define CTGPU_WARP inline
#endif

namespace ctgpu {

using codec::LANES;

#ifdef __CUDACC__

template <class T>
using Lanes = T;

CTGPU_WARP int lane_numbers() { return static_cast<int>(threadIdx.x); }
CTGPU_WARP void sync_warp() { __syncwarp(); }
CTGPU_WARP bool any(bool holds) { return __any_sync(~0u, holds); }

template <class To, class T>
CTGPU_WARP To cast(T value) {
    return static_cast<To>(value);
}
template <class T>
CTGPU_WARP T select(bool condition, T yes, T no) {
    return condition ? yes : no;
}
// Of a lane so many before; 0 where there is none.
CTGPU_WARP unsigned from_before(unsigned value, int lanes) {
    const unsigned before = __shfl_up_sync(~0u, value, static_cast<unsigned>(lanes));
    return lane_numbers() >= lanes ? before : 0;
}
CTGPU_WARP unsigned of_last(unsigned value) { return __shfl_sync(~0u, value, LANES - 1); }

CTGPU_WARP int count_ones(unsigned word) { return __popc(word); }
CTGPU_WARP unsigned funnel(unsigned low, unsigned high, unsigned by) {
    return __funnelshift_r(low, high, by);
}
CTGPU_WARP float float_of(int value) { return __int2float_rn(value); }
CTGPU_WARP float power_of_two(int exponent) { return __int_as_float((127 + exponent) << 23); }
CTGPU_WARP unsigned float_bits(float value) { return __float_as_uint(value); }
// Of a float16 that is 0 or not tiny: rounded to even, and infinite beyond the largest.
CTGPU_WARP unsigned half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Of memory that the kernel does not write.
CTGPU_WARP unsigned word_at(const unsigned *words, unsigned index) { return __ldg(words + index); }
template <class T>
CTGPU_WARP T load(const T *from, int index) {
    return from[index];
}
template <class T>
CTGPU_WARP void store(T *to, int index, T value, bool where) {
    if (where)
        to[index] = value;
}
// Places of a word's ones, of which its lowest bit has the place `bit`, from the `number`-th on to
// memory that takes SIZE and then begins anew.  Lanes part here: sync_warp() has them meet again.
template <int SIZE>
CTGPU_WARP void store_places(unsigned *to, int number, unsigned word, unsigned bit) {
    for (; word; word &= word - 1)
        to[number++ & (SIZE - 1)] = bit + static_cast<unsigned>(__clz(__brev(word)));
}

#else

template <class T>
struct Lanes {
    T of[LANES];

    Lanes() = default;
    Lanes(T all) {
        for (T &one : of)
            one = all;
    }
    template <class F>
    static Lanes each(F f) {
        Lanes made;
        for (int lane = 0; lane < LANES; ++lane)
            made.of[lane] = static_cast<T>(f(lane));
        return made;
    }

#define CTGPU_OPERATOR(result, sign)                                                               \
    friend Lanes<result> operator sign(const Lanes &a, const Lanes &b) {                           \
        return Lanes<result>::each([&](int n) { return a.of[n] sign b.of[n]; });                   \
    }
    CTGPU_OPERATOR(T, +)
    CTGPU_OPERATOR(T, -)
    CTGPU_OPERATOR(T, *)
    CTGPU_OPERATOR(T, &)
    CTGPU_OPERATOR(T, |)
    CTGPU_OPERATOR(T, ^)
    CTGPU_OPERATOR(T, <<)
    CTGPU_OPERATOR(T, >>)
    CTGPU_OPERATOR(bool, <)
    CTGPU_OPERATOR(bool, >=)
    CTGPU_OPERATOR(bool, ==)
    CTGPU_OPERATOR(bool, !=)
#undef CTGPU_OPERATOR
};

inline Lanes<int> lane_numbers() {
    return Lanes<int>::each([](int lane) { return lane; });
}
inline void sync_warp() {}
inline bool any(const Lanes<bool> &holds) {
    bool found = false;
    for (const bool one : holds.of)
        found = found || one;
    return found;
}

template <class To, class T>
Lanes<To> cast(const Lanes<T> &value) {
    return Lanes<To>::each([&](int n) { return value.of[n]; });
}
template <class T>
Lanes<T> select(const Lanes<bool> &condition, const Lanes<T> &yes, const Lanes<T> &no) {
    return Lanes<T>::each([&](int n) { return condition.of[n] ? yes.of[n] : no.of[n]; });
}
inline Lanes<unsigned> from_before(const Lanes<unsigned> &value, int lanes) {
    return Lanes<unsigned>::each([&](int n) { return n >= lanes ? value.of[n - lanes] : 0; });
}
inline unsigned of_last(const Lanes<unsigned> &value) { return value.of[LANES - 1]; }

inline Lanes<int> count_ones(const Lanes<unsigned> &word) {
    return Lanes<int>::each([&](int n) { return __builtin_popcount(word.of[n]); });
}
inline Lanes<unsigned> funnel(const Lanes<unsigned> &low, const Lanes<unsigned> &high,
                              const Lanes<unsigned> &by) {
    return Lanes<unsigned>::each([&](int n) {
        return (static_cast<unsigned long long>(high.of[n]) << 32 | low.of[n]) >> (by.of[n] & 31);
    });
}
inline Lanes<float> float_of(const Lanes<int> &value) { return cast<float>(value); }
inline float power_of_two(int exponent) {
    const int bits = (127 + exponent) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline Lanes<unsigned> float_bits(const Lanes<float> &value) {
    Lanes<unsigned> bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline Lanes<unsigned> half_bits(const Lanes<float> &value) {
    const Lanes<unsigned> bits = float_bits(value), size = bits & 0x7fffffffu;
    const Lanes<unsigned> rounded = (size + 0xfffu + (size >> 13u & 1u)) >> 13u;
    return (bits >> 16u & 0x8000u) |
           select(size == Lanes<unsigned>(0u), size, rounded - (112u << 10));
}

inline Lanes<unsigned> word_at(const unsigned *words, const Lanes<unsigned> &index) {
    return Lanes<unsigned>::each([&](int n) { return words[index.of[n]]; });
}
template <class T>
Lanes<T> load(const T *from, const Lanes<int> &index) {
    return Lanes<T>::each([&](int n) { return from[index.of[n]]; });
}
template <class T>
void store(T *to, const Lanes<int> &index, const Lanes<T> &value, const Lanes<bool> &where) {
    for (int n = 0; n < LANES; ++n)
        if (where.of[n])
            to[index.of[n]] = value.of[n];
}
template <int SIZE>
void store_places(unsigned *to, const Lanes<int> &number, const Lanes<unsigned> &word,
                  const Lanes<unsigned> &bit) {
    for (int n = 0; n < LANES; ++n) {
        int next = number.of[n];
        for (unsigned rest = word.of[n]; rest; rest &= rest - 1)
            to[next++ & (SIZE - 1)] = bit.of[n] + static_cast<unsigned>(__builtin_ctz(rest));
    }
}

#endif

// With those of all lanes before.
CTGPU_WARP Lanes<unsigned> running_sum(Lanes<unsigned> value) {
    for (int lanes = 1; lanes < LANES; lanes *= 2)
        value = value + from_before(value, lanes);
    return value;
}

// As arithmetic of 16 bits has it.
CTGPU_WARP Lanes<int> wrapped(const Lanes<int> &value) { return cast<int>(cast<short>(value)); }

}  // namespace ctgpu

#endif
