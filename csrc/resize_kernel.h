// Resizing, forward and backward: average pooling if the height shrinks, otherwise bilinear interpolation.
//
// Both are linear along each axis: each result is a weighted sum of neighbours. Backward uses the transposed weights.
#pragma once

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "image.h"

template <class S>
struct Resize {
    const ImageProblem &p;

    explicit Resize(const ImageProblem &problem) : p(problem) {}

    void forward() const {
        run(along(p.height, p.y_height), along(p.width, p.y_width), p.x[0], p.y, false);
    }

    void backward() const {
        run(transposed(along(p.height, p.y_height)), transposed(along(p.width, p.y_width)), p.grad_y, p.grad_x[0], p.add[0]);
    }

  private:
    // Weights of consecutive neighbours, starting at `first`
    struct Taps {
        int64_t first = 0;
        std::vector<S> weights;
    };

    struct Axis {
        int64_t from;            // input length
        std::vector<Taps> taps;  // one entry per result
        int64_t to() const { return taps.size(); }
    };

    Axis along(int64_t from, int64_t to) const {
        Axis axis{from, std::vector<Taps>(to)};
        const bool pools = p.y_height < p.height;
        for (int64_t i = 0; i < to; ++i) {
            if (pools) {
                const int64_t begin = i * from / to, end = ((i + 1) * from + to - 1) / to;
                axis.taps[i] = {begin, std::vector<S>(end - begin, 1 / S(end - begin))};
            } else {
                // aligned by pixel centres; the border pixels are repeated outside the image
                const double ratio = static_cast<double>(from) / static_cast<double>(to);
                const double at = std::max(0.0, (static_cast<double>(i) + 0.5) * ratio - 0.5);
                const int64_t first = std::min(static_cast<int64_t>(at), from - 1);
                const S second = static_cast<S>(at - static_cast<double>(first));
                axis.taps[i] = first + 1 < from ? Taps{first, {1 - second, second}} : Taps{first, {S(1)}};
            }
        }
        return axis;
    }

    static Axis transposed(const Axis &axis) {
        Axis result{axis.to(), std::vector<Taps>(axis.from)};
        for (int64_t i = 0; i < axis.to(); ++i)
            for (size_t k = 0; k < axis.taps[i].weights.size(); ++k) {
                Taps &taps = result.taps[axis.taps[i].first + k];
                if (taps.weights.empty()) taps.first = i;
                taps.weights.resize(i - taps.first + 1);
                taps.weights.back() = axis.taps[i].weights[k];
            }
        return result;
    }

    // Combine rows into a line of the input's width, then resize that line along the columns
    void run(const Axis &rows, const Axis &columns, const void *from, void *to, bool add) const {
        const int64_t n = p.channels, results = p.batch * rows.to(), parts = std::min(results, 4 * p.threads.count);
        for_each(p.threads, parts, [&](int64_t part) {
            Buffer<S> line(columns.from * n), mean(n);
            for (int64_t row = results * part / parts; row < results * (part + 1) / parts; ++row) {
                const S *image = static_cast<const S *>(from) + row / rows.to() * rows.from * columns.from * n;
                S *y = static_cast<S *>(to) + row * columns.to() * n;
                sum(line, rows.taps[row % rows.to()], image, columns.from * n);
                for (const Taps &taps : columns.taps) {
                    sum(mean, taps, line, n);
                    for (int64_t c = 0; c < n; ++c) y[c] = add ? y[c] + mean[c] : mean[c];
                    y += n;
                }
            }
        });
    }

    // Compute a weighted sum of neighbours, n values each
    static void sum(S *to, const Taps &taps, const S *from, int64_t n) {
        from += taps.first * n;
        std::fill(to, to + n, S(0));
        for (const S weight : taps.weights) {
            for (int64_t i = 0; i < n; ++i) to[i] += weight * from[i];
            from += n;
        }
    }
};
