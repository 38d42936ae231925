// Depthwise 3×3 convolution, forward and backward: y = x ∗ weight + bias with zero padding, optionally followed by
// SiLU. Weight is (channels, 1, 3, 3).
//
// A row of pixels is one line of values, in which the same channel of the next pixel is p.channels values away. Vectors
// therefore run over pixels and channels alike. Lines are zero-padded, so borders need no special case. Backward needs
// only x: it recomputes SiLU's input.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "buffer.h"
#include "image.h"
#include "vector_math.h"

template <class S>
struct Depthwise {
    using V = Real<S>;
    static constexpr int W = kWidth<S>, kTaps = 9;

    const ImageProblem &p;
    const int64_t line = p.width * p.channels;
    // number of values after which channels recur in the same lanes
    const int64_t period = std::lcm(p.channels, static_cast<int64_t>(W));
    const int64_t padded = 2 * p.channels + line + W;
    Buffer<S> weight{kTaps * period}, bias{period};

    explicit Depthwise(const ImageProblem &problem) : p(problem) {
        for (int64_t i = 0; i < period; ++i) {
            const int64_t channel = i % p.channels;
            for (int tap = 0; tap < kTaps; ++tap)
                weight[tap * period + i] = static_cast<const S *>(p.weight)[channel * kTaps + tap];
            bias[i] = static_cast<const S *>(p.bias)[channel];
        }
    }

    void forward() const {
        const int64_t parts = std::min(p.height, std::max<int64_t>(1, 4 * p.threads.count / p.batch));
        for_each(p.threads, p.batch * parts, [&](int64_t task) {
            const int64_t b = task / parts, part = task % parts;
            const int64_t begin = p.height * part / parts, end = p.height * (part + 1) / parts;
            Lines x(padded);
            Buffer<S> y(line + W);
            for (int64_t h = begin - 1; h <= end; ++h) {
                load_line(x.of(h), p.x[0], b, h);
                if (h - 1 < begin) continue;
                convolve(x, h - 1, [&](int64_t at, V value, int64_t) {
                    store<S>(y + at, p.silu ? silu<S>(value).value : value);
                });
                std::copy(y + 0, y + line, row_of(p.y, b, h - 1));
            }
        });
    }

    void backward() const {
        // independent of the thread count, so that the order of summation is always the same
        const int64_t parts = std::min<int64_t>(8, (p.height + 7) / 8);
        std::vector<Buffer<S>> sums(p.batch * parts);
        for_each(p.threads, p.batch * parts, [&](int64_t task) {
            const int64_t b = task / parts, part = task % parts;
            sums[task] = Buffer<S>((kTaps + 1) * period);
            run_backward(b, p.height * part / parts, p.height * (part + 1) / parts, sums[task]);
        });
        add_up(sums);
    }

  private:
    // The three most recently loaded lines of an image, indexed by row
    struct Lines {
        Buffer<S> lines[3];
        explicit Lines(int64_t padded) {
            for (Buffer<S> &line : lines) line = Buffer<S>(padded);
        }
        S *of(int64_t row) const { return lines[(row + 3) % 3]; }
    };

    template <class T>
    S *row_of(T *tensor, int64_t b, int64_t row) const {
        return const_cast<S *>(static_cast<const S *>(tensor)) + (b * p.height + row) * line;
    }

    // Load a row into a zero-padded line; rows outside the image are zeros
    void load_line(S *to, const void *tensor, int64_t b, int64_t row) const {
        S *at = to + p.channels;
        if (row < 0 || row >= p.height)
            std::fill(at, at + line, S(0));
        else
            std::copy(row_of(tensor, b, row), row_of(tensor, b, row) + line, at);
    }

    // Call result(offset in the line, value, offset in the period) for each vector of a row
    template <class Result>
    void convolve(const Lines &x, int64_t row, Result result) const {
        const S *above = x.of(row - 1), *here = x.of(row), *below = x.of(row + 1);
        for (int64_t lane = 0; lane < period; lane += W) {
            V factor[kTaps];
            for (int tap = 0; tap < kTaps; ++tap) factor[tap] = load<S>(weight + tap * period + lane);
            const V start = load<S>(bias + lane);
            for (int64_t at = lane; at < line; at += period) {
                V sum = start;
                for (int dx = 0; dx < 3; ++dx) {
                    const int64_t from = at + dx * p.channels;
                    sum += load<S>(above + from) * factor[dx] + load<S>(here + from) * factor[3 + dx] +
                           load<S>(below + from) * factor[6 + dx];
                }
                result(at, sum, lane);
            }
        }
    }

    // Compute the gradient of x in rows [begin, end), and add these rows' contributions to the parameter gradients
    void run_backward(int64_t b, int64_t begin, int64_t end, S *sums) const {
        Lines x(padded), grad(padded);  // grad: the gradient of SiLU's input
        Buffer<S> grad_x(line + W);
        load_line(x.of(begin - 2), p.x[0], b, begin - 2);
        load_line(x.of(begin - 1), p.x[0], b, begin - 1);
        for (int64_t h = begin - 1; h <= end; ++h) {
            load_line(x.of(h + 1), p.x[0], b, h + 1);
            load_line(grad.of(h), p.grad_y, b, h);
            if (p.silu && h >= 0 && h < p.height) {
                S *dy = grad.of(h) + p.channels;
                convolve(x, h, [&](int64_t at, V value, int64_t) {
                    store<S>(dy + at, load<S>(dy + at) * silu<S>(value).slope);
                });
                std::fill(dy + line, grad.of(h) + padded, S(0));
            }
            if (h >= begin && h < end) add_line(x, grad.of(h) + p.channels, h, sums);
            if (h - 1 < begin) continue;
            spread(grad, h - 1, grad_x);
            std::copy(grad_x + 0, grad_x + line, row_of(p.grad_x[0], b, h - 1));
        }
    }

    void add_line(const Lines &x, const S *grad, int64_t row, S *sums) const {
        const S *above = x.of(row - 1), *here = x.of(row), *below = x.of(row + 1);
        for (int64_t lane = 0; lane < period; lane += W) {
            V by_weight[kTaps], by_bias = load<S>(sums + kTaps * period + lane);
            for (int tap = 0; tap < kTaps; ++tap) by_weight[tap] = load<S>(sums + tap * period + lane);
            for (int64_t at = lane; at < line; at += period) {
                const V dy = load<S>(grad + at);
                by_bias += dy;
                for (int dx = 0; dx < 3; ++dx) {
                    const int64_t from = at + dx * p.channels;
                    by_weight[dx] += dy * load<S>(above + from);
                    by_weight[3 + dx] += dy * load<S>(here + from);
                    by_weight[6 + dx] += dy * load<S>(below + from);
                }
            }
            store<S>(sums + kTaps * period + lane, by_bias);
            for (int tap = 0; tap < kTaps; ++tap) store<S>(sums + tap * period + lane, by_weight[tap]);
        }
    }

    // Compute the gradient of x in a row: a convolution with the mirrored weights
    void spread(const Lines &grad, int64_t row, S *grad_x) const {
        const S *above = grad.of(row - 1), *here = grad.of(row), *below = grad.of(row + 1);
        for (int64_t lane = 0; lane < period; lane += W) {
            V factor[kTaps];
            for (int tap = 0; tap < kTaps; ++tap) factor[tap] = load<S>(weight + tap * period + lane);
            for (int64_t at = lane; at < line; at += period) {
                V sum{};
                for (int dx = 0; dx < 3; ++dx) {
                    const int64_t from = at + (2 - dx) * p.channels;
                    sum += load<S>(above + from) * factor[6 + dx] + load<S>(here + from) * factor[3 + dx] +
                           load<S>(below + from) * factor[dx];
                }
                store<S>(grad_x + at, sum);
            }
        }
    }

    void add_up(const std::vector<Buffer<S>> &sums) const {
        S *grad_weight = static_cast<S *>(p.grad_weight), *grad_bias = static_cast<S *>(p.grad_bias);
        for (int64_t channel = 0; channel < p.channels; ++channel)
            for (int tap = 0; tap <= kTaps; ++tap) {
                S sum = 0;
                for (const Buffer<S> &part : sums)
                    for (int64_t i = channel; i < period; i += p.channels) sum += part[tap * period + i];
                (tap < kTaps ? grad_weight[channel * kTaps + tap] : grad_bias[channel]) = sum;
            }
    }
};
