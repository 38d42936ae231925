// Vectors of the width that the build sets (VECTOR_BYTES), in GCC's and Clang's vector extension, and the functions on
// them that the kernels need. The compiler chooses the instructions, except for a few that it does not find.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __x86_64__
#include <immintrin.h>
#endif

template <class S>
struct Vector;

template <>
struct Vector<float> {
    typedef float Real __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Int __attribute__((vector_size(VECTOR_BYTES)));
    // 1.5·2²³ plus the exponent's bias. Adding this constant rounds a value to an integer n, and the low bits of the
    // sum are then the exponent bits of 2^n.
    static constexpr float kRound = 12582912.0f + 127;
    static constexpr int32_t kMantissa = 23;
    static constexpr float kLowest = -126.0f, kHighest = 128.0f;  // 2^kHighest is infinite
    // (2^f − 1)/f on [−½, ½], minimax, relative error 1.2e-8
    static constexpr int kTerms = 6;
    static constexpr double kExp[] = {0.6931471880293428,    0.24022650922342767,  0.055503571042529544,
                                      0.009618056669882512,  0.0013390867351404268, 0.00015461447464417687};
    static constexpr int kLogTerms = 7, kSlopeTerms = 5;
    static constexpr double kSlopeBound = 0.125;
};

template <>
struct Vector<double> {
    typedef double Real __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Int __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr double kRound = 6755399441055744.0 + 1023;  // 1.5·2⁵² plus the bias
    static constexpr int64_t kMantissa = 52;
    static constexpr double kLowest = -1022.0, kHighest = 1024.0;
    // (2^f − 1)/f by its Taylor series ln2^(k+1)/(k+1)!
    static constexpr int kTerms = 13;
    static constexpr double kExp[] = {0.69314718055994530942,   0.24022650695910071233,   0.055504108664821579953,
                                      0.0096181291076284771620, 0.0013333558146428443423, 0.00015403530393381609954,
                                      1.5252733804059840280e-5, 1.3215486790144309488e-6, 1.0178086009239699728e-7,
                                      7.0549116208011233299e-9, 4.4455382718708114976e-10, 2.5678435993488205142e-11,
                                      1.3691488853904128881e-12};
    static constexpr int kLogTerms = 17, kSlopeTerms = 12;
    static constexpr double kSlopeBound = 0.25;
};

template <class S>
constexpr int kWidth = VECTOR_BYTES / sizeof(S);

constexpr double kLog2E = 1.4426950408889634074;

template <class S>
using Real = typename Vector<S>::Real;

template <class S>
inline Real<S> load(const S *p) {
    Real<S> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class S>
inline void store(S *p, Real<S> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class S>
inline Real<S> splat(S s) {
    return s - Real<S>{};  // not a sum, as −0 + 0 is +0
}

// Keep the compiler from fusing a product into a sum, which would round differently from code that cannot fuse it
template <class S>
inline Real<S> rounded(Real<S> product) {
#if defined(__x86_64__)
    asm("" : "+v"(product));
#elif defined(__aarch64__)
    asm("" : "+w"(product));
#endif
    return product;
}

// Return the larger or the smaller of y and a bound; NaN stays NaN
#ifdef __x86_64__
inline __m128 maximum(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
inline __m128d maximum(__m128d a, __m128d b) { return _mm_max_pd(a, b); }
inline __m128 minimum(__m128 a, __m128 b) { return _mm_min_ps(a, b); }
inline __m128d minimum(__m128d a, __m128d b) { return _mm_min_pd(a, b); }
#ifdef __AVX2__
inline __m256 maximum(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __m256d maximum(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
inline __m256 minimum(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
inline __m256d minimum(__m256d a, __m256d b) { return _mm256_min_pd(a, b); }
#endif
#ifdef __AVX512F__
inline __m512 maximum(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
inline __m512d maximum(__m512d a, __m512d b) { return _mm512_max_pd(a, b); }
#endif

template <class S>
inline Real<S> at_least(Real<S> y, S bound) {
    return (Real<S>)maximum(splat<S>(bound), y);
}

template <class S>
inline Real<S> at_most(Real<S> y, S bound) {
    return (Real<S>)minimum(splat<S>(bound), y);
}
#else
template <class S>
inline Real<S> at_least(Real<S> y, S bound) {
    return y < bound ? splat<S>(bound) : y;
}

template <class S>
inline Real<S> at_most(Real<S> y, S bound) {
    return y > bound ? splat<S>(bound) : y;
}
#endif

// Split y ≥ kLowest into n + f with an integer n and |f| ≤ ½, and return f and 2^n. From kHighest on, 2^n is infinite,
// so that overflow stays visible.
template <class S>
inline Real<S> split_exponent(Real<S> y, Real<S> &power) {
#ifdef __AVX512F__
    // two instructions instead of the other branch's five
    Real<S> n;
    if constexpr (sizeof(S) == 4) {
        n = (Real<S>)_mm512_roundscale_ps((__m512)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        power = (Real<S>)_mm512_scalef_ps((__m512)splat<S>(1), (__m512)n);
    } else {
        n = (Real<S>)_mm512_roundscale_pd((__m512d)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        power = (Real<S>)_mm512_scalef_pd((__m512d)splat<S>(1), (__m512d)n);
    }
    return y - n;
#else
    using V = Vector<S>;
    y = at_most<S>(y, V::kHighest);
    const Real<S> shifted = y + V::kRound;
    power = (Real<S>)((typename V::Int)shifted << V::kMantissa);
    return y - (shifted - V::kRound);
#endif
}

// Compute `power` and `rest` with 2^y = power·(1 + rest). Both 2^y and 2^y − 1 follow from them without loss of digits,
// but not from each other if one is small. Processing `count` vectors together keeps more operations in flight.
template <class S, int count>
inline void exp2_parts(const Real<S> *y, Real<S> *power, Real<S> *rest) {
    using V = Vector<S>;
    Real<S> f[count];
    for (int i = 0; i < count; ++i) f[i] = split_exponent<S>(at_least<S>(y[i], V::kLowest), power[i]);
    for (int i = 0; i < count; ++i) rest[i] = splat<S>(S(V::kExp[V::kTerms - 1]));
    for (int k = V::kTerms - 2; k >= 0; --k)
        for (int i = 0; i < count; ++i) rest[i] = rest[i] * f[i] + S(V::kExp[k]);
    for (int i = 0; i < count; ++i) rest[i] *= f[i];
}

template <class S, int count>
inline void exp2(const Real<S> *y, Real<S> *result) {
    Real<S> power[count], rest[count];
    exp2_parts<S, count>(y, power, rest);
    for (int i = 0; i < count; ++i) result[i] = power[i] * rest[i] + power[i];
}

template <class S, int count>
inline void exp2_minus_1(const Real<S> *y, Real<S> *result) {
    Real<S> power[count], rest[count];
    exp2_parts<S, count>(y, power, rest);
    for (int i = 0; i < count; ++i) result[i] = power[i] * rest[i] + (power[i] - S(1));
}

template <class S>
inline Real<S> exp2(Real<S> y) {
    Real<S> result;
    exp2<S, 1>(&y, &result);
    return result;
}

// Compute log(1 + e^x) and, with `with_slope`, its derivative 1/(1 + e^−x). Above x = 20, the value is x and the
// derivative is 1, as in torch and mamba_ssm.
template <class S, bool with_slope>
inline void softplus(Real<S> x, Real<S> &value, Real<S> &slope) {
    const auto positive = x > S(0);
    const Real<S> z = exp2<S>((positive ? -x : x) * S(kLog2E));
    // log(1 + z) = 2 artanh(z / (2 + z)), with z in (0, 1]
    const Real<S> s = z / (z + S(2)), s2 = s * s;
    Real<S> p = splat<S>(S(1) / S(2 * Vector<S>::kLogTerms - 1));
    for (int k = Vector<S>::kLogTerms - 2; k >= 0; --k) p = p * s2 + S(1) / S(2 * k + 1);
    const auto linear = x > S(20);
    value = linear ? x : (positive ? x : Real<S>{}) + s * p * S(2);
    if (with_slope) slope = linear ? splat<S>(1) : (positive ? splat<S>(1) : z) / (z + S(1));
}

// x/(1 + e^−x) and its derivative
template <class S>
struct Silu {
    Real<S> value, slope;
};

template <class S>
inline Silu<S> silu(Real<S> x) {
    const auto positive = x > S(0);
    const Real<S> z = exp2<S>((positive ? -x : x) * S(kLog2E));
    const Real<S> sigmoid = (positive ? splat<S>(1) : z) / (z + S(1));
    // below this bound e^x is inexact, and a large x would multiply a value that should be zero
    const auto vanishes = x < S(Vector<S>::kLowest / kLog2E);
    const Real<S> slope = sigmoid * (x * (S(1) - sigmoid) + S(1));
    return {vanishes ? Real<S>{} : x * sigmoid, vanishes ? Real<S>{} : slope};
}

// Sum pairs of neighbouring lanes; the first half of the result comes from a, the second from b
template <class S, int... I>
inline Real<S> add_pairs(Real<S> a, Real<S> b, std::integer_sequence<int, I...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, (2 * I)...) + __builtin_shufflevector(a, b, (2 * I + 1)...);
#else
    using Int = typename Vector<S>::Int;
    return __builtin_shuffle(a, b, Int{(2 * I)...}) + __builtin_shuffle(a, b, Int{(2 * I + 1)...});
#endif
}

// Set out[i] to the sum over the lanes of rows[i], for as many rows as a vector has lanes; overwrites `rows`
template <class S>
inline void sum_lanes(Real<S> *rows, S *out) {
    for (int count = kWidth<S>; count > 1; count /= 2)
        for (int i = 0; i < count / 2; ++i)
            rows[i] = add_pairs<S>(rows[2 * i], rows[2 * i + 1], std::make_integer_sequence<int, kWidth<S>>());
    store<S>(out, rows[0]);
}
