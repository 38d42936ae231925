// Pixelwise layers, forward and backward.
//
// Pixels are processed in tiles. A tile's features are rows of channels, with pixels in the lanes. They pass through
// all layers without leaving the cache. Backward needs only the loaded tensors: it reruns the layers of each tile. Each
// result is used once, so its gradient needs no sum. The order of summation over pixels is the same for any number of
// threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "buffer.h"
#include "matrix.h"
#include "pixelwise.h"
#include "transpose.h"
#include "vector_math.h"

template <class S>
struct PixelLayers {
    using V = Real<S>;
    static constexpr int W = kWidth<S>;
    static constexpr int kPixels = 32;  // per tile

    const PixelProblem &p;
    const int64_t pixels = p.batch * p.height * p.width;
    const int64_t tiles = (pixels + kPixels - 1) / kPixels;
    // per layer: first row of its result in a tile's features; layers whose results it uses; tensor that it loads
    std::vector<int64_t> at, first, second, tensor;
    int64_t rows = 0, widest = 0;

    explicit PixelLayers(const PixelProblem &problem)
        : p(problem), at(p.layers), first(p.layers), second(p.layers), tensor(p.layers) {
        std::vector<int64_t> stack;
        const auto pop = [&] {
            const int64_t top = stack.back();
            stack.pop_back();
            return top;
        };
        int64_t loaded = 0;
        for (int64_t l = 0; l < p.layers; ++l) {
            const int32_t kind = p.layer[l].kind;
            if (kind == kLoad) tensor[l] = loaded++;
            if (kind == kConcat || kind == kTimes || kind == kPlus) second[l] = pop();
            if (kind != kLoad) first[l] = pop();
            stack.push_back(l);
            at[l] = rows;
            rows += p.layer[l].channels;
            widest = std::max(widest, p.layer[l].channels);
        }
    }

    int64_t channels_of(int64_t layer) const { return p.layer[layer].channels; }

    static bool is_linear(const PixelLayer &layer) { return layer.kind == kLinear || layer.kind == kProject; }

    // Offsets of a tile's pixels in a tensor
    struct Offsets {
        int used;
        int64_t at[kPixels];
    };

    Offsets offsets(const PixelTensor &tensor, int64_t tile) const {
        Offsets result;
        const int64_t first = tile * kPixels;
        result.used = static_cast<int>(std::min<int64_t>(kPixels, pixels - first));
        int64_t b = first / (p.height * p.width), y = first / p.width % p.height, x = first % p.width;
        for (int t = 0; t < result.used; ++t) {
            result.at[t] = b * tensor.strides[0] + y * tensor.strides[1] + x * tensor.strides[2];
            if (++x == p.width) {
                x = 0;
                if (++y == p.height) y = 0, ++b;
            }
        }
        return result;
    }

    // Load a tile's features from a tensor: (channels, kPixels), with zeros past the last pixel
    void load_tile(S *to, const PixelTensor &tensor, int64_t tile) const {
        const Offsets offset = offsets(tensor, tile);
        const S *from = static_cast<const S *>(tensor.data);
        const int64_t channels = tensor.channels, stride = tensor.strides[3];
        if (offset.used < kPixels) std::fill(to, to + channels * kPixels, S(0));
        if (stride == 1)
            transpose<S>([&](int64_t t) { return from + offset.at[t]; }, [&](int64_t c) { return to + c * kPixels; },
                         offset.used, channels);
        else
            for (int64_t c = 0; c < channels; ++c)
                for (int t = 0; t < offset.used; ++t) to[c * kPixels + t] = from[offset.at[t] + c * stride];
    }

    void save_tile(const S *from, const PixelTensor &tensor, int64_t tile) const {
        const Offsets offset = offsets(tensor, tile);
        S *to = static_cast<S *>(tensor.data);
        const int64_t channels = tensor.channels, stride = tensor.strides[3];
        if (stride == 1 && offset.used == kPixels)
            transpose<S>([&](int64_t c) { return from + c * kPixels; }, [&](int64_t t) { return to + offset.at[t]; },
                         channels, kPixels);
        else
            for (int64_t c = 0; c < channels; ++c)
                for (int t = 0; t < offset.used; ++t) to[offset.at[t] + c * stride] = from[c * kPixels + t];
    }

    // Like `save_tile`, but add to the existing values; by_pixel (kPixels, channels) is scratch
    void add_tile(const S *from, const PixelTensor &tensor, int64_t tile, S *by_pixel) const {
        const Offsets offset = offsets(tensor, tile);
        const int64_t channels = tensor.channels, stride = tensor.strides[3];
        transpose<S>([&](int64_t c) { return from + c * kPixels; }, [&](int64_t t) { return by_pixel + t * channels; },
                     channels, kPixels);
        for (int t = 0; t < offset.used; ++t, by_pixel += channels) {
            S *to = static_cast<S *>(tensor.data) + offset.at[t];
            for (int64_t c = 0; c < channels; ++c) to[c * stride] += by_pixel[c];
        }
    }

    // A tile's features: each layer's result, (rows, kPixels), and the statistics of norms, (layers, kPixels)
    struct Tile {
        Buffer<S> features, mean, scale;

        explicit Tile(const PixelLayers &layers)
            : features(layers.rows * kPixels), mean(layers.p.layers * kPixels), scale(layers.p.layers * kPixels) {}
    };

    // ---- layers: x (channels, kPixels) to y, and gradients back ----------------------------------------------------

    void norm(const PixelLayer &layer, int64_t channels, const S *x, S *y, S *mean, S *scale) const {
        const S *weight = static_cast<const S *>(layer.weight), *bias = static_cast<const S *>(layer.bias);
        for (int t = 0; t < kPixels; t += W) {
            V sum{}, squares{};
            for (int64_t c = 0; c < channels; ++c) sum += load<S>(x + c * kPixels + t);
            const V center = sum / S(channels);
            for (int64_t c = 0; c < channels; ++c) {
                const V centered = load<S>(x + c * kPixels + t) - center;
                squares += centered * centered;
            }
            const V variance = squares / S(channels) + S(layer.eps);
            V factor{};
            for (int i = 0; i < W; ++i) factor[i] = S(1) / std::sqrt(variance[i]);
            store<S>(mean + t, center);
            store<S>(scale + t, factor);
            for (int64_t c = 0; c < channels; ++c)
                store<S>(y + c * kPixels + t,
                         (load<S>(x + c * kPixels + t) - center) * (factor * weight[c]) + bias[c]);
        }
    }

    // With x̂ the normalised features and g the gradient of x̂, the gradient of x is scale (g − mean g − x̂ mean(g x̂))
    void norm_gradient(const PixelLayer &layer, int64_t channels, const S *x, const S *grad_y, S *grad_x, const S *mean,
                       const S *scale, S *grad_weight, S *grad_bias) const {
        const S *weight = static_cast<const S *>(layer.weight);
        for (int t = 0; t < kPixels; t += W) {
            const V center = load<S>(mean + t), factor = load<S>(scale + t);
            V sum{}, product{};
            for (int64_t c = 0; c < channels; ++c) {
                const V normalised = (load<S>(x + c * kPixels + t) - center) * factor;
                const V dy = load<S>(grad_y + c * kPixels + t), g = dy * weight[c];
                store<S>(grad_weight + c * W, load<S>(grad_weight + c * W) + dy * normalised);
                store<S>(grad_bias + c * W, load<S>(grad_bias + c * W) + dy);
                sum += g;
                product += g * normalised;
            }
            sum /= S(channels);
            product /= S(channels);
            for (int64_t c = 0; c < channels; ++c) {
                const V normalised = (load<S>(x + c * kPixels + t) - center) * factor;
                const V g = load<S>(grad_y + c * kPixels + t) * weight[c];
                store<S>(grad_x + c * kPixels + t, factor * (g - sum - normalised * product));
            }
        }
    }

    void linear(const PixelLayer &layer, int64_t channels, const S *x, S *y) const {
        multiply<S>({static_cast<const S *>(layer.weight), channels, 1}, x, kPixels, y, kPixels, layer.channels, kPixels,
                    channels);
        if (layer.kind == kProject) return;
        const S *bias = static_cast<const S *>(layer.bias);
        for (int64_t c = 0; c < layer.channels; ++c)
            for (int t = 0; t < kPixels; t += W)
                store<S>(y + c * kPixels + t, load<S>(y + c * kPixels + t) + bias[c]);
    }

    // grad_weight is (layer.channels, padded channels), and grad_bias has one sum per lane. by_pixel (kPixels, padded
    // channels) is scratch with zero padding.
    void linear_gradient(const PixelLayer &layer, int64_t channels, const S *x, const S *grad_y, S *grad_x,
                         S *grad_weight, S *grad_bias, S *by_pixel) const {
        const int64_t width = columns(channels);
        transpose<S>([&](int64_t c) { return x + c * kPixels; }, [&](int64_t t) { return by_pixel + t * width; },
                     channels, kPixels);
        if (layer.kind == kLinear)
            for (int64_t c = 0; c < layer.channels; ++c)
                for (int t = 0; t < kPixels; t += W)
                    store<S>(grad_bias + c * W, load<S>(grad_bias + c * W) + load<S>(grad_y + c * kPixels + t));
        multiply<S>({grad_y, kPixels, 1}, by_pixel, width, grad_weight, width, layer.channels, width, kPixels, true);
        multiply<S>({static_cast<const S *>(layer.weight), 1, channels}, grad_y, kPixels, grad_x, kPixels, channels,
                    kPixels, layer.channels);
    }

    static int64_t columns(int64_t channels) { return (channels + W - 1) / W * W; }

    template <class Function>
    static void map(int64_t channels, Function function) {
        for (int64_t i = 0; i < channels * kPixels; i += W) function(i);
    }

    static void copy(S *to, const S *from, int64_t channels) { std::memcpy(to, from, channels * kPixels * sizeof(S)); }

    void run_forward(Tile &s, int64_t tile) const {
        for (int64_t l = 0; l < p.layers; ++l) {
            const PixelLayer &layer = p.layer[l];
            const int64_t channels = channels_of(first[l]);
            const S *x = s.features + at[first[l]] * kPixels, *other = s.features + at[second[l]] * kPixels;
            S *y = s.features + at[l] * kPixels;
            switch (layer.kind) {
                case kLoad:
                    load_tile(y, p.tensor[tensor[l]], tile);
                    break;
                case kConcat:
                    copy(y, x, channels);
                    copy(y + channels * kPixels, other, channels_of(second[l]));
                    break;
                case kNorm:
                    norm(layer, channels, x, y, s.mean + l * kPixels, s.scale + l * kPixels);
                    break;
                case kLinear:
                case kProject:
                    linear(layer, channels, x, y);
                    break;
                case kSilu:
                    map(channels, [&](int64_t i) { store<S>(y + i, silu<S>(load<S>(x + i)).value); });
                    break;
                case kTimes:
                    map(channels, [&](int64_t i) { store<S>(y + i, load<S>(x + i) * load<S>(other + i)); });
                    break;
                case kPlus:
                    map(channels, [&](int64_t i) { store<S>(y + i, load<S>(x + i) + load<S>(other + i)); });
                    break;
            }
        }
    }

    // Sums over the pixels of one part of the tiles, for each layer with parameters, laid out as in the functions above
    struct Sums {
        std::vector<Buffer<S>> weight, bias;

        Sums() = default;
        explicit Sums(const PixelLayers &layers) : weight(layers.p.layers), bias(layers.p.layers) {
            for (int64_t l = 0; l < layers.p.layers; ++l) {
                const PixelLayer &layer = layers.p.layer[l];
                if (layer.kind == kNorm || layer.kind == kLinear) bias[l] = Buffer<S>(layer.channels * W);
                if (layer.kind == kNorm) {
                    weight[l] = Buffer<S>(layer.channels * W);
                } else if (is_linear(layer)) {
                    weight[l] = Buffer<S>(layer.channels * columns(layers.channels_of(layers.first[l])));
                }
            }
        }
    };

    // grads (rows, kPixels) holds the gradient of each layer's result
    void run_backward(Tile &s, int64_t tile, S *grads, S *by_pixel, Sums &sums) const {
        run_forward(s, tile);
        load_tile(grads + at[p.layers - 1] * kPixels, p.y, tile);
        for (int64_t l = p.layers - 1; l >= 0; --l) {
            const PixelLayer &layer = p.layer[l];
            const int64_t channels = channels_of(first[l]);
            const S *x = s.features + at[first[l]] * kPixels, *other = s.features + at[second[l]] * kPixels;
            const S *grad_y = grads + at[l] * kPixels;
            S *grad_x = grads + at[first[l]] * kPixels, *grad_other = grads + at[second[l]] * kPixels;
            switch (layer.kind) {
                case kLoad:
                    if (p.grad[tensor[l]].add)
                        add_tile(grad_y, p.grad[tensor[l]], tile, by_pixel);
                    else
                        save_tile(grad_y, p.grad[tensor[l]], tile);
                    break;
                case kConcat:
                    copy(grad_x, grad_y, channels);
                    copy(grad_other, grad_y + channels * kPixels, channels_of(second[l]));
                    break;
                case kNorm:
                    norm_gradient(layer, channels, x, grad_y, grad_x, s.mean + l * kPixels, s.scale + l * kPixels,
                                  sums.weight[l], sums.bias[l]);
                    break;
                case kLinear:
                case kProject:
                    std::fill(by_pixel, by_pixel + kPixels * columns(channels), S(0));
                    linear_gradient(layer, channels, x, grad_y, grad_x, sums.weight[l], sums.bias[l], by_pixel);
                    break;
                case kSilu:
                    map(channels, [&](int64_t i) {
                        store<S>(grad_x + i, load<S>(grad_y + i) * silu<S>(load<S>(x + i)).slope);
                    });
                    break;
                case kTimes:
                    map(channels, [&](int64_t i) {
                        const V dy = load<S>(grad_y + i);
                        store<S>(grad_x + i, dy * load<S>(other + i));
                        store<S>(grad_other + i, dy * load<S>(x + i));
                    });
                    break;
                case kPlus:
                    copy(grad_x, grad_y, channels);
                    copy(grad_other, grad_y, channels);
                    break;
            }
        }
    }

    // ---- threads -------------------------------------------------------------------------------------------------

    void forward() const {
        const int64_t parts = std::min(tiles, 4 * p.threads.count);
        for_each(p.threads, parts, [&](int64_t part) {
            Tile s(*this);
            for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile) {
                run_forward(s, tile);
                save_tile(s.features + at[p.layers - 1] * kPixels, p.y, tile);
            }
        });
    }

    void backward() const {
        // independent of the thread count, so that the order of summation is always the same
        const int64_t parts = std::min<int64_t>(tiles, 32);
        std::vector<Sums> sums(parts);
        for_each(p.threads, parts, [&](int64_t part) {
            Tile s(*this);
            sums[part] = Sums(*this);
            Buffer<S> grads(rows * kPixels), by_pixel(kPixels * columns(widest));
            for (int64_t tile = tiles * part / parts; tile < tiles * (part + 1) / parts; ++tile)
                run_backward(s, tile, grads, by_pixel, sums[part]);
        });
        for_each(p.threads, p.layers, [&](int64_t l) { add_up(sums, l); });
    }

    void add_up(const std::vector<Sums> &sums, int64_t l) const {
        const PixelLayer &layer = p.layer[l];
        S *grad_weight = static_cast<S *>(layer.grad_weight), *grad_bias = static_cast<S *>(layer.grad_bias);
        const auto add_lanes = [&](S *to, std::vector<Buffer<S>> Sums::*of) {
            for (int64_t c = 0; c < layer.channels; ++c) {
                to[c] = 0;
                for (const Sums &part : sums)
                    for (int i = 0; i < W; ++i) to[c] += (part.*of)[l][c * W + i];
            }
        };
        if (layer.kind == kNorm || layer.kind == kLinear) add_lanes(grad_bias, &Sums::bias);
        if (layer.kind == kNorm) {
            add_lanes(grad_weight, &Sums::weight);
        } else if (is_linear(layer)) {
            const int64_t channels = channels_of(first[l]), width = columns(channels);
            Buffer<S> total(layer.channels * width);
            for (const Sums &part : sums)
                for (int64_t i = 0; i < layer.channels * width; i += W)
                    store<S>(total + i, load<S>(total + i) + load<S>(part.weight[l] + i));
            for (int64_t j = 0; j < layer.channels; ++j)
                std::copy(total + j * width, total + j * width + channels, grad_weight + j * channels);
        }
    }
};
