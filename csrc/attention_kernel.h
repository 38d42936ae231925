// Steps of the bridge's attention that need whole images, forward and backward.
//
// Each image is split into parts of several rows. The number of parts does not depend on the thread count, so the order
// of summation is the same for any number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "image.h"
#include "vector_math.h"

template <class S>
struct ImageParts {
    using V = Real<S>;
    static constexpr int W = kWidth<S>;

    const ImageProblem &p;
    const int64_t pixels = p.height * p.width;
    const int64_t parts = std::min<int64_t>(8, (p.height + 7) / 8);  // per image

    explicit ImageParts(const ImageProblem &problem) : p(problem) {}

  protected:
    // Call run(task, image, first row, row after the last) for each part of each image
    template <class Run>
    void for_parts(Run run) const {
        for_each(p.threads, p.batch * parts, [&](int64_t task) {
            const int64_t part = task % parts;
            run(task, task / parts, p.height * part / parts, p.height * (part + 1) / parts);
        });
    }

    std::vector<Buffer<S>> buffers_by_part(int64_t size) const {
        std::vector<Buffer<S>> buffers;
        for (int64_t task = 0; task < p.batch * parts; ++task) buffers.emplace_back(size);
        return buffers;
    }

    template <class T>
    static S *at(T *tensor, int64_t offset) {
        return const_cast<S *>(static_cast<const S *>(tensor)) + offset;
    }

    // Load min(n, W) values; the remaining lanes get `rest`
    static V load_some(const S *from, int64_t n, S rest = S(0)) {
        if (n >= W) return load<S>(from);
        V v = splat<S>(rest);
        for (int64_t i = 0; i < n; ++i) v[i] = from[i];
        return v;
    }

    static void store_some(S *to, int64_t n, V v) {
        if (n >= W) return store<S>(to, v);
        for (int64_t i = 0; i < n; ++i) to[i] = v[i];
    }

    // Call run(c, lanes) for each vector of channels; `lanes` channels remain from c on, possibly more than W
    template <class Run>
    void for_channels(Run run) const {
        for (int64_t c = 0; c < p.channels; c += W) run(c, p.channels - c);
    }

    static S total(V v) {
        S sum = 0;
        for (int i = 0; i < W; ++i) sum += v[i];
        return sum;
    }

    static V larger(V a, V b) { return a > b ? a : b; }

    static V sigmoid(V x) {
        const auto positive = x > S(0);
        const V z = exp2<S>((positive ? -x : x) * S(kLog2E));
        return (positive ? splat<S>(1) : z) / (z + S(1));
    }

    // to[i] = 1/(1 + e^{−from[i]})
    static void sigmoids(const S *from, S *to, int64_t n) {
        for (int64_t i = 0; i < n; i += W) store_some(to + i, n - i, sigmoid(load_some(from + i, n - i)));
    }
};

// Mean and maximum over the channels: (batch, height, width, channels) → (…, 2). Channels that tie for the maximum
// share its gradient.
template <class S>
struct ChannelSummary : ImageParts<S> {
    using Base = ImageParts<S>;
    using V = typename Base::V;
    using Base::at, Base::p, Base::W, Base::load_some, Base::store_some;
    using Base::Base;

    void forward() const {
        this->for_parts([&](int64_t, int64_t b, int64_t begin, int64_t end) {
            const int64_t first = (b * p.height + begin) * p.width, last = (b * p.height + end) * p.width;
            for (int64_t pixel = first; pixel < last; ++pixel) {
                const S *x = at(p.x[0], pixel * p.channels);
                V sum{};
                this->for_channels([&](int64_t c, int64_t lanes) { sum += load_some(x + c, lanes); });
                S *y = at(p.y, 2 * pixel);
                y[0] = this->total(sum) / S(p.channels);
                y[1] = maximum_of(x);
            }
        });
    }

    void backward() const {
        this->for_parts([&](int64_t, int64_t b, int64_t begin, int64_t end) {
            const int64_t first = (b * p.height + begin) * p.width, last = (b * p.height + end) * p.width;
            for (int64_t pixel = first; pixel < last; ++pixel) {
                const S *x = at(p.x[0], pixel * p.channels), *grad_y = at(p.grad_y, 2 * pixel);
                S *grad_x = at(p.grad_x[0], pixel * p.channels);
                const S peak = maximum_of(x);
                const int64_t count = std::count(x, x + p.channels, peak);
                const V by_mean = splat<S>(grad_y[0] / S(p.channels)), by_peak = splat<S>(grad_y[1] / S(count));
                this->for_channels([&](int64_t c, int64_t lanes) {
                    const V old = p.add[0] ? load_some(grad_x + c, lanes) : V{};
                    const V part = load_some(x + c, lanes) == peak ? by_peak : V{};
                    store_some(grad_x + c, lanes, old + by_mean + part);
                });
            }
        });
    }

  private:
    S maximum_of(const S *x) const {
        V peak = splat<S>(x[0]);
        this->for_channels([&](int64_t c, int64_t lanes) { peak = this->larger(load_some(x + c, lanes, x[0]), peak); });
        S result = peak[0];
        for (int i = 1; i < W; ++i) result = std::max<S>(result, peak[i]);
        return result;
    }
};

// Zero-padded 7×7 convolution from two channels to one: weight (1, 2, 7, 7), no bias
template <class S>
struct SpatialConvolution : ImageParts<S> {
    using Base = ImageParts<S>;
    using V = typename Base::V;
    using Base::at, Base::p, Base::W, Base::parts;
    using Base::Base;
    static constexpr int kSide = 7, kHalf = 3, kTaps = 2 * kSide * kSide;

    void forward() const {
        const S *weight = at(p.weight, 0);
        this->for_parts([&](int64_t, int64_t b, int64_t begin, int64_t end) {
            const Buffer<S> x = planes(p.x[0], 2, b, begin, end);
            for_vectors(begin, end, [&](int64_t row, int64_t w) {
                V sum{};
                for_taps([&](int tap, int plane, int dy, int dx) {
                    sum += load<S>(x + ((row - begin + dy) * 2 + plane) * line + w + dx) * weight[tap];
                });
                this->store_some(at(p.y, (b * p.height + row) * p.width + w), p.width - w, sum);
            });
        });
    }

    void backward() const {
        const S *weight = at(p.weight, 0);
        const std::vector<Buffer<S>> sums = this->buffers_by_part(kTaps * W);
        this->for_parts([&](int64_t task, int64_t b, int64_t begin, int64_t end) {
            const Buffer<S> x = planes(p.x[0], 2, b, begin, end), grad = planes(p.grad_y, 1, b, begin, end);
            S *by_weight = sums[task];
            for_vectors(begin, end, [&](int64_t row, int64_t w) {
                V by_x[2]{};
                const V dy_here = load<S>(grad + (row - begin + kHalf) * line + w + kHalf);
                for_taps([&](int tap, int plane, int dy, int dx) {
                    // the gradient of x uses mirrored taps
                    by_x[plane] += load<S>(grad + (row - begin + 2 * kHalf - dy) * line + w + 2 * kHalf - dx) * weight[tap];
                    const V from = load<S>(x + ((row - begin + dy) * 2 + plane) * line + w + dx);
                    store<S>(by_weight + tap * W, load<S>(by_weight + tap * W) + dy_here * from);
                });
                S *grad_x = at(p.grad_x[0], ((b * p.height + row) * p.width + w) * 2);
                for (int64_t i = 0; i < std::min<int64_t>(W, p.width - w); ++i)
                    for (int plane = 0; plane < 2; ++plane) grad_x[2 * i + plane] = by_x[plane][i];
            });
        });
        for (int tap = 0; tap < kTaps; ++tap) {
            S sum = 0;
            for (const Buffer<S> &part : sums) sum += this->total(load<S>(part + tap * W));
            at(p.grad_weight, 0)[tap] = sum;
        }
    }

  private:
    const int64_t line = p.width + 2 * kHalf + W;

    // Copy rows [begin − 3, end + 3) of an image into zero-padded lines, one per row and channel
    Buffer<S> planes(const void *tensor, int64_t channels, int64_t b, int64_t begin, int64_t end) const {
        Buffer<S> result((end - begin + 2 * kHalf) * channels * line);
        for (int64_t row = std::max<int64_t>(0, begin - kHalf); row < std::min(p.height, end + kHalf); ++row)
            for (int64_t c = 0; c < channels; ++c) {
                const S *from = at(tensor, (b * p.height + row) * p.width * channels + c);
                S *to = result + ((row - begin + kHalf) * channels + c) * line + kHalf;
                for (int64_t w = 0; w < p.width; ++w) to[w] = from[w * channels];
            }
        return result;
    }

    template <class Run>
    void for_vectors(int64_t begin, int64_t end, Run run) const {
        for (int64_t row = begin; row < end; ++row)
            for (int64_t w = 0; w < p.width; w += W) run(row, w);
    }

    template <class Run>
    static void for_taps(Run run) {
        for (int plane = 0, tap = 0; plane < 2; ++plane)
            for (int dy = 0; dy < kSide; ++dy)
                for (int dx = 0; dx < kSide; ++dx, ++tap) run(tap, plane, dy, dx);
    }
};

// Mean and maximum of x σ(s) over the pixels: x (batch, height, width, channels) and s (…, 1) → (2 batch, 1, 1,
// channels), all means first. Pixels that tie for the maximum share its gradient. Forward saves σ(s) and the maxima in
// `kept`.
template <class S>
struct PixelSummary : ImageParts<S> {
    using Base = ImageParts<S>;
    using V = typename Base::V;
    using Base::at, Base::p, Base::W, Base::parts, Base::pixels, Base::load_some, Base::store_some;
    using Base::Base;

    void forward() const {
        const std::vector<Buffer<S>> sums = this->buffers_by_part(p.channels), peaks = this->buffers_by_part(p.channels);
        Buffer<S> own(p.kept ? 0 : p.batch * pixels);
        S *gates = p.kept ? at(p.kept, 0) : own;
        this->for_parts([&](int64_t task, int64_t b, int64_t begin, int64_t end) {
            const int64_t first = b * pixels + begin * p.width, last = b * pixels + end * p.width;
            this->sigmoids(at(p.x[1], first), gates + first, last - first);
            S *sum = sums[task], *peak = peaks[task];
            for (int64_t pixel = first; pixel < last; ++pixel) {
                const S *x = at(p.x[0], pixel * p.channels);
                this->for_channels([&](int64_t c, int64_t lanes) {
                    const V y = load_some(x + c, lanes) * gates[pixel];
                    store_some(sum + c, lanes, load_some(sum + c, lanes) + y);
                    store_some(peak + c, lanes, pixel == first ? y : this->larger(y, load_some(peak + c, lanes)));
                });
            }
        });
        for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t c = 0; c < p.channels; ++c) {
                S sum = 0, peak = peaks[b * parts][c];
                for (int64_t task = b * parts; task < (b + 1) * parts; ++task) {
                    sum += sums[task][c];
                    peak = std::max<S>(peak, peaks[task][c]);
                }
                *at(p.y, b * p.channels + c) = sum / S(pixels);
                *at(p.y, (p.batch + b) * p.channels + c) = peak;
                if (p.kept) *at(p.kept, p.batch * pixels + b * p.channels + c) = peak;
            }
    }

    void backward() const {
        const S *gates = at(p.kept, 0), *all_peaks = gates + p.batch * pixels;
        const std::vector<Buffer<S>> counts = this->buffers_by_part(p.channels);
        this->for_parts([&](int64_t task, int64_t b, int64_t begin, int64_t end) {
            S *count = counts[task];
            for (int64_t pixel = b * pixels + begin * p.width; pixel < b * pixels + end * p.width; ++pixel)
                this->for_channels([&](int64_t c, int64_t lanes) {
                    const V y = load_some(at(p.x[0], pixel * p.channels + c), lanes) * gates[pixel];
                    const V one = y == load_some(all_peaks + b * p.channels + c, lanes) ? splat<S>(1) : V{};
                    store_some(count + c, lanes, load_some(count + c, lanes) + one);
                });
        });
        Buffer<S> by_mean(p.batch * p.channels), by_peak(p.batch * p.channels);
        for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t c = 0; c < p.channels; ++c) {
                S count = 0;
                for (int64_t task = b * parts; task < (b + 1) * parts; ++task) count += counts[task][c];
                by_mean[b * p.channels + c] = *at(p.grad_y, b * p.channels + c) / S(pixels);
                by_peak[b * p.channels + c] = *at(p.grad_y, (p.batch + b) * p.channels + c) / count;
            }
        this->for_parts([&](int64_t, int64_t b, int64_t begin, int64_t end) {
            const S *mean = by_mean + b * p.channels, *share = by_peak + b * p.channels, *peak = all_peaks + b * p.channels;
            for (int64_t pixel = b * pixels + begin * p.width; pixel < b * pixels + end * p.width; ++pixel) {
                const S gate = gates[pixel], *from = at(p.x[0], pixel * p.channels);
                S *grad_x = at(p.grad_x[0], pixel * p.channels), *grad_s = at(p.grad_x[1], pixel);
                V by_gate{};
                this->for_channels([&](int64_t c, int64_t lanes) {
                    const V x = load_some(from + c, lanes), y = x * gate;
                    const V dy = load_some(mean + c, lanes) +
                                 (y == load_some(peak + c, lanes) ? load_some(share + c, lanes) : V{});
                    const V old = p.add[0] ? load_some(grad_x + c, lanes) : V{};
                    store_some(grad_x + c, lanes, old + dy * gate);
                    by_gate += dy * x;
                });
                *grad_s = (p.add[1] ? *grad_s : S(0)) + this->total(by_gate) * gate * (1 - gate);
            }
        });
    }
};

// x + x σ(s) σ(m + n): x is (batch, height, width, channels) and s (…, 1). One tensor (2 batch, 1, 1, channels) holds
// m, then n.
template <class S>
struct Attend : ImageParts<S> {
    using Base = ImageParts<S>;
    using V = typename Base::V;
    using Base::at, Base::p, Base::W, Base::parts, Base::pixels, Base::load_some, Base::store_some;
    using Base::Base;

    void forward() const {
        const Buffer<S> by_channel = channel_gates();
        this->for_parts([&](int64_t, int64_t b, int64_t begin, int64_t end) {
            const int64_t first = b * pixels + begin * p.width, last = b * pixels + end * p.width;
            Buffer<S> gates(last - first);
            this->sigmoids(at(p.x[1], first), gates, last - first);
            const S *channel_gate = by_channel + b * p.channels;
            for (int64_t pixel = first; pixel < last; ++pixel)
                this->for_channels([&](int64_t c, int64_t lanes) {
                    const V x = load_some(at(p.x[0], pixel * p.channels + c), lanes);
                    const V gate = load_some(channel_gate + c, lanes) * gates[pixel - first];
                    store_some(at(p.y, pixel * p.channels + c), lanes, x + x * gate);
                });
        });
    }

    void backward() const {
        const Buffer<S> by_channel = channel_gates();
        const std::vector<Buffer<S>> sums = this->buffers_by_part(p.channels);
        this->for_parts([&](int64_t task, int64_t b, int64_t begin, int64_t end) {
            const int64_t first = b * pixels + begin * p.width, last = b * pixels + end * p.width;
            Buffer<S> gates(last - first);
            this->sigmoids(at(p.x[1], first), gates, last - first);
            const S *channel_gate = by_channel + b * p.channels;
            S *sum = sums[task];
            for (int64_t pixel = first; pixel < last; ++pixel) {
                const S gate = gates[pixel - first];
                S *grad_x = at(p.grad_x[0], pixel * p.channels), *grad_s = at(p.grad_x[1], pixel);
                V by_gate{};
                this->for_channels([&](int64_t c, int64_t lanes) {
                    const V x = load_some(at(p.x[0], pixel * p.channels + c), lanes);
                    const V dy = load_some(at(p.grad_y, pixel * p.channels + c), lanes);
                    const V other = load_some(channel_gate + c, lanes);
                    const V old = p.add[0] ? load_some(grad_x + c, lanes) : V{};
                    store_some(grad_x + c, lanes, old + (dy + dy * (other * gate)));
                    by_gate += dy * x * other;
                    store_some(sum + c, lanes, load_some(sum + c, lanes) + dy * x * gate);
                });
                *grad_s = (p.add[1] ? *grad_s : S(0)) + this->total(by_gate) * gate * (1 - gate);
            }
        });
        for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t c = 0; c < p.channels; ++c) {
                S sum = 0;
                for (int64_t task = b * parts; task < (b + 1) * parts; ++task) sum += sums[task][c];
                const S gate = by_channel[b * p.channels + c];
                for (int64_t half : {b, p.batch + b}) *at(p.grad_x[2], half * p.channels + c) = sum * gate * (1 - gate);
            }
    }

  private:
    Buffer<S> channel_gates() const {
        const int64_t n = p.batch * p.channels;
        Buffer<S> logits(n), gates(n);
        for (int64_t i = 0; i < n; ++i) logits[i] = *at(p.x[2], i) + *at(p.x[2], n + i);
        this->sigmoids(logits, gates, n);
        return gates;
    }
};
