// Discrete Fourier transforms of short signals, one per lane (Stockham's autosort algorithm, decimation in frequency).
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "buffer.h"
#include "vector_math.h"

template <class S>
class Fourier {
    using V = Real<S>;
    static constexpr int W = kWidth<S>;

  public:
    // Real and imaginary parts (n, W) of signals. A transform puts its result in `re` and `im`; the others are scratch.
    struct Signals {
        S *re, *im, *other_re, *other_im;
    };

    const int64_t n;

    explicit Fourier(int64_t n) : n(n), cosine_(n), sine_(n) {
        int64_t rest = n;
        for (int64_t radix : {4, 3, 2})
            for (; rest % radix == 0; rest /= radix) radices_.push_back(radix);
        for (int64_t radix = 5; rest > 1; radix += 2)
            for (; rest % radix == 0; rest /= radix) radices_.push_back(radix);
        const double step = 2 * std::acos(-1.0) / static_cast<double>(n);
        for (int64_t k = 0; k < n; ++k) {
            cosine_[k] = static_cast<S>(std::cos(step * static_cast<double>(k)));
            sine_[k] = static_cast<S>(std::sin(step * static_cast<double>(k)));
        }
    }

    // Compute Σ_k x_k e^{−2πijk/n}, unscaled
    void forward(Signals &x) const {
        int64_t stride = 1;
        for (int64_t radix : radices_) {
            switch (radix) {
                case 2: stage2(x, stride); break;
                case 3: stage3(x, stride); break;
                case 4: stage4(x, stride); break;
                default: stage(x, stride, radix);
            }
            std::swap(x.re, x.other_re);
            std::swap(x.im, x.other_im);
            stride *= radix;
        }
    }

    // Compute Σ_k x_k e^{2πijk/n}, unscaled, as a forward transform with real and imaginary parts swapped before and after
    void inverse(Signals &x) const {
        Signals swapped{x.im, x.re, x.other_im, x.other_re};
        forward(swapped);
        x = {swapped.im, swapped.re, swapped.other_im, swapped.other_re};
    }

  private:
    struct Complex {
        V re, im;
        Complex operator+(const Complex &b) const { return {re + b.re, im + b.im}; }
        Complex operator-(const Complex &b) const { return {re - b.re, im - b.im}; }
        Complex times_minus_i() const { return {im, -re}; }
    };

    std::vector<int64_t> radices_;
    Buffer<S> cosine_, sine_;  // of 2πk/n

    static Complex at(const Signals &x, int64_t i) { return {load<S>(x.re + i * W), load<S>(x.im + i * W)}; }

    static void put(const Signals &x, int64_t i, const Complex &value) {
        store<S>(x.other_re + i * W, value.re);
        store<S>(x.other_im + i * W, value.im);
    }

    // Return x e^{−2πik/n}
    Complex turned(const Complex &x, int64_t k) const {
        const V c = splat<S>(cosine_[k]), s = splat<S>(sine_[k]);
        return {x.re * c + x.im * s, x.im * c - x.re * s};
    }

    // A stage maps signals (radix, parts, stride) to (parts, radix, stride)
    template <class Butterfly>
    void for_butterflies(int64_t stride, int64_t radix, Butterfly butterfly) const {
        const int64_t parts = n / stride / radix;
        for (int64_t p = 0; p < parts; ++p)
            for (int64_t q = 0; q < stride; ++q) butterfly(q + stride * p, stride * parts, q + stride * radix * p, p * stride);
    }

    void stage2(const Signals &x, int64_t stride) const {
        for_butterflies(stride, 2, [&](int64_t from, int64_t gap, int64_t to, int64_t turn) {
            const Complex a = at(x, from), b = at(x, from + gap);
            put(x, to, a + b);
            put(x, to + stride, turned(a - b, turn));
        });
    }

    void stage3(const Signals &x, int64_t stride) const {
        const V sine = splat<S>(S(0.86602540378443864676));
        for_butterflies(stride, 3, [&](int64_t from, int64_t gap, int64_t to, int64_t turn) {
            const Complex a = at(x, from), b = at(x, from + gap), c = at(x, from + 2 * gap);
            const Complex sum = b + c, difference = b - c;
            const Complex middle{a.re - sum.re * S(0.5), a.im - sum.im * S(0.5)};
            const Complex side = Complex{difference.re * sine, difference.im * sine}.times_minus_i();
            put(x, to, a + sum);
            put(x, to + stride, turned(middle + side, turn));
            put(x, to + 2 * stride, turned(middle - side, 2 * turn));
        });
    }

    void stage4(const Signals &x, int64_t stride) const {
        for_butterflies(stride, 4, [&](int64_t from, int64_t gap, int64_t to, int64_t turn) {
            const Complex a = at(x, from), b = at(x, from + gap), c = at(x, from + 2 * gap), d = at(x, from + 3 * gap);
            const Complex even = a + c, odd = b + d, even_rest = a - c, odd_rest = (b - d).times_minus_i();
            put(x, to, even + odd);
            put(x, to + stride, turned(even_rest + odd_rest, turn));
            put(x, to + 2 * stride, turned(even - odd, 2 * turn));
            put(x, to + 3 * stride, turned(even_rest - odd_rest, 3 * turn));
        });
    }

    void stage(const Signals &x, int64_t stride, int64_t radix) const {
        for_butterflies(stride, radix, [&](int64_t from, int64_t gap, int64_t to, int64_t turn) {
            for (int64_t j = 0; j < radix; ++j) {
                Complex sum = at(x, from);
                for (int64_t k = 1; k < radix; ++k) sum = sum + turned(at(x, from + k * gap), j * k % radix * (n / radix));
                put(x, to + j * stride, turned(sum, j * turn));
            }
        });
    }
};
