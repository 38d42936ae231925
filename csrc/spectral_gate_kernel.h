// Spectral gate, forward and backward: y = irfft2(weight · rfft2(x) + bias), with orthonormal transforms. The number of
// channels is even. Weight and bias are (height, width/2 + 1, channels, 2). Forward saves the spectrum of x for
// backward, in `spectrum_size` values.
//
// Two real channels are transformed as one complex signal. The first half of the channels, in memory order, are the
// real parts of the signals, and the second half are the imaginary parts. The spectra X1 and X2 of the two channels
// follow from the packed spectrum Z and its mirror image: Z(k) = X1(k) + i X2(k), and the conjugate of Z(−k) is
// X1(k) − i X2(k). Rows are transformed first. Columns w and −w are then transformed, gated and transformed back
// together, while they are in the cache. Rows are transformed back last.
//
// Columns 0 and width/2 are their own mirror images. In these columns, irfft2 reads only the Hermitian part of a
// spectrum, so only the Hermitian parts of weight and bias matter there.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "buffer.h"
#include "fft.h"
#include "image.h"
#include "vector_math.h"

template <class S>
struct SpectralGate {
    using V = Real<S>;
    using Signals = typename Fourier<S>::Signals;
    static constexpr int W = kWidth<S>;

    const ImageProblem &p;
    const int64_t half = p.channels / 2;
    const int64_t columns = p.width / 2 + 1;                 // stored by rfft2
    const int64_t chunks = (columns * half + W - 1) / W;     // vectors; a lane is a channel pair of a stored column
    const Fourier<S> along_rows{p.width}, along_columns{p.height};
    const S scale = S(1 / std::sqrt(static_cast<double>(p.height) * static_cast<double>(p.width)));

    explicit SpectralGate(const ImageProblem &problem) : p(problem) {}

    int64_t spectrum_size() const { return p.batch * chunks * p.height * 4 * W; }

    void forward() const {
        S *y = static_cast<S *>(p.y);
        transform_rows(static_cast<const S *>(p.x[0]), y, false);
        for_each(p.threads, chunks, [&](int64_t chunk) { gate_columns(chunk, y); });
        transform_rows(y, y, true);
    }

    void backward() const {
        S *grad_x = static_cast<S *>(p.grad_x[0]);
        transform_rows(static_cast<const S *>(p.grad_y), grad_x, false);
        for_each(p.threads, chunks, [&](int64_t chunk) { gate_gradients(chunk, grad_x); });
        transform_rows(grad_x, grad_x, true);
    }

  private:
    // Adjacent lanes of one line, whose values are adjacent in memory
    struct Run {
        int lane, count;
        int64_t line, channel;  // of the first lane
    };

    using Runs = std::vector<Run>;

    // Real and imaginary parts of signals of n values, one signal per lane, and workspace of the same size
    struct Scratch {
        Buffer<S> memory;
        Signals signals;

        explicit Scratch(int64_t n) : memory(4 * n * W), signals{memory, memory + n * W, memory + 2 * n * W, memory + 3 * n * W} {}
    };

    static void copy(S *to, const S *from, int count) {
        if (count == W) return store<S>(to, load<S>(from));
        int i = 0;
        for (; i + 4 <= count; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(S));
        for (; i < count; ++i) to[i] = from[i];
    }

    // Gather signals of n values that are `step` apart; a line begins at start(line)
    template <class Start>
    void gather(const Signals &to, const S *from, const Runs &runs, Start start, int64_t n, int64_t step) const {
        for (const Run &run : runs) {
            const S *at = from + start(run.line) + run.channel;
            for (int64_t i = 0; i < n; ++i, at += step) {
                copy(to.re + i * W + run.lane, at, run.count);
                copy(to.im + i * W + run.lane, at + half, run.count);
            }
        }
    }

    template <class Start>
    void scatter(const Signals &from, S *to, const Runs &runs, Start start, int64_t n, int64_t step) const {
        for (const Run &run : runs) {
            S *at = to + start(run.line) + run.channel;
            for (int64_t i = 0; i < n; ++i, at += step) {
                copy(at, from.re + i * W + run.lane, run.count);
                copy(at + half, from.im + i * W + run.lane, run.count);
            }
        }
    }

    // Return the runs of vector number `index`; lanes enumerate the channel pairs of each line
    Runs runs_of(int64_t index, int64_t lines) const {
        const int64_t first = index * W, last = std::min(first + W, lines * half);
        Runs runs;
        for (int64_t lane = first; lane < last;) {
            const int64_t channel = lane % half, count = std::min(half - channel, last - lane);
            runs.push_back({static_cast<int>(lane - first), static_cast<int>(count), lane / half, channel});
            lane += count;
        }
        return runs;
    }

    void transform_rows(const S *from, S *to, bool inverse) const {
        const int64_t rows = p.batch * p.height, total = (rows * half + W - 1) / W;
        const int64_t parts = std::min(total, 4 * p.threads.count);
        const auto start = [&](int64_t row) { return row * p.width * p.channels; };
        for_each(p.threads, parts, [&](int64_t part) {
            Scratch scratch(p.width);
            for (int64_t i = total * part / parts; i < total * (part + 1) / parts; ++i) {
                const Runs runs = runs_of(i, rows);
                gather(scratch.signals, from, runs, start, p.width, p.channels);
                inverse ? along_rows.inverse(scratch.signals) : along_rows.forward(scratch.signals);
                scatter(scratch.signals, to, runs, start, p.width, p.channels);
            }
        });
    }

    // Return the weights or biases of a chunk, (height, 4, W): real and imaginary parts for X1, then for X2
    Buffer<S> values_of(const void *tensor, int64_t chunk) const {
        const S *from = static_cast<const S *>(tensor);
        Buffer<S> values(p.height * 4 * W);
        for_values(chunk, [&](const Run &run, int64_t h, int part) {
            const S *here = from + entry(run, h, part);
            S *re = values + (h * 4 + 2 * part) * W + run.lane, *im = re + W;
            for (int i = 0; i < run.count; ++i) re[i] = here[2 * i], im[i] = here[2 * i + 1];
            if (!is_own_mirror(run.line)) return;
            const S *mirror = from + entry(run, (p.height - h) % p.height, part);
            for (int i = 0; i < run.count; ++i) {
                re[i] = (re[i] + mirror[2 * i]) / 2;
                im[i] = (im[i] - mirror[2 * i + 1]) / 2;
            }
        });
        return values;
    }

    void save_values(const S *values, void *tensor, int64_t chunk) const {
        for_values(chunk, [&](const Run &run, int64_t h, int part) {
            const S *re = values + (h * 4 + 2 * part) * W + run.lane, *im = re + W;
            S *to = static_cast<S *>(tensor) + entry(run, h, part);
            const S count = is_own_mirror(run.line) ? S(1) : S(2);  // how often the full spectrum contains the value
            for (int i = 0; i < run.count; ++i) to[2 * i] = count * re[i], to[2 * i + 1] = count * im[i];
        });
    }

    template <class Function>
    void for_values(int64_t chunk, Function function) const {
        for (const Run &run : runs_of(chunk, columns))
            for (int64_t h = 0; h < p.height; ++h)
                for (int part = 0; part < 2; ++part) function(run, h, part);
    }

    // Return the offset of a run's values in weight or bias, at a row
    int64_t entry(const Run &run, int64_t row, int part) const {
        return ((row * columns + run.line) * p.channels + run.channel + part * half) * 2;
    }

    bool is_own_mirror(int64_t column) const { return column == 0 || 2 * column == p.width; }

    struct Complex {
        V re, im;
    };

    // Separate X1 and X2 at a row, given columns `plus` and their mirror images `minus`
    void separate(const Signals &plus, const Signals &minus, int64_t h, Complex &x1, Complex &x2) const {
        const int64_t here = h * W, mirror = (p.height - h) % p.height * W;
        const V half_scale = splat<S>(scale / 2);
        const V re = load<S>(plus.re + here), im = load<S>(plus.im + here);
        const V mirror_re = load<S>(minus.re + mirror), mirror_im = load<S>(minus.im + mirror);
        x1 = {(re + mirror_re) * half_scale, (im - mirror_im) * half_scale};
        x2 = {(im + mirror_im) * half_scale, (mirror_re - re) * half_scale};
    }

    void join(const Complex &y1, const Complex &y2, const Signals &plus, const Signals &minus, int64_t h) const {
        const int64_t here = h * W, mirror = (p.height - h) % p.height * W;
        const V factor = splat<S>(scale);
        store<S>(plus.re + here, (y1.re - y2.im) * factor);
        store<S>(plus.im + here, (y1.im + y2.re) * factor);
        store<S>(minus.re + mirror, (y1.re + y2.im) * factor);
        store<S>(minus.im + mirror, (y2.re - y1.im) * factor);
    }

    // Transform a chunk's columns of every sample, call gate(sample, plus, minus), and transform them back
    template <class Gate>
    void for_columns(int64_t chunk, S *features, Gate gate) const {
        const Runs runs = runs_of(chunk, columns);
        const int64_t step = p.width * p.channels;
        const auto at = [&](int64_t column) { return column * p.channels; };
        const auto mirrored = [&](int64_t column) { return (p.width - column) % p.width * p.channels; };
        Scratch plus(p.height), minus(p.height);
        for (int64_t b = 0; b < p.batch; ++b) {
            S *sample = features + b * p.height * step;
            gather(plus.signals, sample, runs, at, p.height, step);
            gather(minus.signals, sample, runs, mirrored, p.height, step);
            along_columns.forward(plus.signals);
            along_columns.forward(minus.signals);
            gate(b, plus.signals, minus.signals);
            along_columns.inverse(plus.signals);
            along_columns.inverse(minus.signals);
            scatter(plus.signals, sample, runs, at, p.height, step);
            scatter(minus.signals, sample, runs, mirrored, p.height, step);
        }
    }

    S *spectrum_of(int64_t b, int64_t chunk) const {
        return static_cast<S *>(p.kept) + (b * chunks + chunk) * p.height * 4 * W;
    }

    static Complex at(const S *values, int part) { return {load<S>(values + 2 * part * W), load<S>(values + (2 * part + 1) * W)}; }

    static void put(S *values, int part, const Complex &x) {
        store<S>(values + 2 * part * W, x.re);
        store<S>(values + (2 * part + 1) * W, x.im);
    }

    void gate_columns(int64_t chunk, S *features) const {
        const Buffer<S> weight = values_of(p.weight, chunk), bias = values_of(p.bias, chunk);
        for_columns(chunk, features, [&](int64_t b, const Signals &plus, const Signals &minus) {
            for (int64_t h = 0; h < p.height; ++h) {
                Complex x[2], y[2];
                separate(plus, minus, h, x[0], x[1]);
                for (int part = 0; part < 2; ++part) {
                    const Complex w = at(weight + h * 4 * W, part), c = at(bias + h * 4 * W, part);
                    if (p.kept) put(spectrum_of(b, chunk) + h * 4 * W, part, x[part]);
                    y[part] = {w.re * x[part].re - w.im * x[part].im + c.re, w.re * x[part].im + w.im * x[part].re + c.im};
                }
                join(y[0], y[1], plus, minus, h);
            }
        });
    }

    void gate_gradients(int64_t chunk, S *features) const {
        const Buffer<S> weight = values_of(p.weight, chunk);
        Buffer<S> grad_weight(p.height * 4 * W), grad_bias(p.height * 4 * W);
        for_columns(chunk, features, [&](int64_t b, const Signals &plus, const Signals &minus) {
            for (int64_t h = 0; h < p.height; ++h) {
                Complex g[2], by_x[2];
                separate(plus, minus, h, g[0], g[1]);
                S *by_weight = grad_weight + h * 4 * W, *by_bias = grad_bias + h * 4 * W;
                for (int part = 0; part < 2; ++part) {
                    const Complex w = at(weight + h * 4 * W, part), x = at(spectrum_of(b, chunk) + h * 4 * W, part);
                    const Complex dy = g[part], sum = at(by_weight, part), bias_sum = at(by_bias, part);
                    put(by_weight, part, {sum.re + dy.re * x.re + dy.im * x.im, sum.im + dy.im * x.re - dy.re * x.im});
                    put(by_bias, part, {bias_sum.re + dy.re, bias_sum.im + dy.im});
                    by_x[part] = {w.re * dy.re + w.im * dy.im, w.re * dy.im - w.im * dy.re};
                }
                join(by_x[0], by_x[1], plus, minus, h);
            }
        });
        save_values(grad_weight, p.grad_weight, chunk);
        save_values(grad_bias, p.grad_bias, chunk);
    }
};
