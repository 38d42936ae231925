// The recurrence and its gradients: one channel through one tile, with the states in the lanes of a few registers.
#pragma once

#include "scan.h"
#include "vector_math.h"

template <class S>
struct Recurrence {
    using V = Real<S>;
    static constexpr int W = kWidth<S>;

    // Values of one channel at a tile's positions: a column of (kTile, stride)
    struct Column {
        const S *data;
        int64_t stride;
        S operator[](int64_t t) const { return data[t * stride]; }
    };

    // Rows of states: B, C or their gradients at a tile's positions
    template <class T>
    struct Rows {
        T *data;
        int64_t stride;
        T *operator()(int64_t t, int v) const { return data + t * stride + v * W; }
    };

    // e^{ΔA} − 1 for the zero-order hold, e^{ΔA} otherwise, at positions from t on, for NV vectors of states
    template <int NV, int steps, bool exact>
    static void discretize(Column delta, int t, const V *a2, V *result) {
        V y[steps * NV];
        for (int i = 0; i < steps; ++i)
            for (int v = 0; v < NV; ++v) y[i * NV + v] = splat<S>(delta[t + i]) * a2[v];
        if constexpr (exact)
            exp2_minus_1<S, steps * NV>(y, result);
        else
            exp2<S, steps * NV>(y, result);
    }

    // The next state. With k = Bu/A, the zero-order hold is e^{ΔA}h + (e^{ΔA} − 1)k = h + (e^{ΔA} − 1)(h + k).
    template <bool exact>
    static V next(V h, V discrete, V b, V inverse, V step, V x) {
        return exact ? h + discrete * (h + x * (b * inverse)) : discrete * h + (step * x) * b;
    }

    // Run NV vectors of states, from `state` on, through a tile. sums (kTile) collects ⟨C, h⟩ lane by lane.
    template <int NV, bool exact, bool outputs>
    static void advance(S *state, const S *a2, const S *inverse, Column delta, Column u, Rows<const S> B,
                        Rows<const S> C, V *sums, bool first) {
        constexpr int steps = 2;
        V h[NV], a[NV], inv[NV];
        for (int v = 0; v < NV; ++v) {
            h[v] = load<S>(state + v * W);
            a[v] = load<S>(a2 + v * W);
            inv[v] = load<S>(inverse + v * W);
        }
        for (int t = 0; t < kTile; t += steps) {
            V discrete[steps * NV];
            discretize<NV, steps, exact>(delta, t, a, discrete);
            for (int i = 0; i < steps; ++i) {
                V sum = first ? V{} : sums[t + i];
                const V x = splat<S>(u[t + i]), step = splat<S>(delta[t + i]);
                for (int v = 0; v < NV; ++v) {
                    h[v] = next<exact>(h[v], discrete[i * NV + v], load<S>(B(t + i, v)), inv[v], step, x);
                    if (outputs) sum += h[v] * load<S>(C(t + i, v));
                }
                if (outputs) sums[t + i] = sum;
            }
        }
        for (int v = 0; v < NV; ++v) store<S>(state + v * W, h[v]);
    }

    // e^{ΔA}, of what `discretize` gives
    template <bool exact>
    static V decay_of(V discrete) {
        return exact ? discrete + S(1) : discrete;
    }

    // g_{t−1} = e^{ΔA} (g_t + C_t ∂y_t), from a tile's end to its start, to the bit as `tile_gradients` has it
    template <int NV, bool exact>
    static void carry(S *gradient, const S *a2, Column delta, Column grad_y, Rows<const S> C) {
        constexpr int steps = 2;
        V g[NV], a[NV];
        for (int v = 0; v < NV; ++v) {
            g[v] = load<S>(gradient + v * W);
            a[v] = load<S>(a2 + v * W);
        }
        for (int t = kTile - steps; t >= 0; t -= steps) {
            V discrete[steps * NV];
            discretize<NV, steps, exact>(delta, t, a, discrete);
            for (int i = steps - 1; i >= 0; --i)
                for (int v = 0; v < NV; ++v) {
                    g[v] += splat<S>(grad_y[t + i]) * load<S>(C(t + i, v));
                    g[v] = rounded<S>(g[v] * decay_of<exact>(discrete[i * NV + v]));
                }
        }
        for (int v = 0; v < NV; ++v) store<S>(gradient + v * W, g[v]);
    }

    // Δ² times ∂/∂x (e^x − 1)/x at x = ΔA, which is the derivative of (e^{ΔA} − 1)/A by A
    static V weight_by_A(V step, V x, V change, V inverse) {
        constexpr int terms = Vector<S>::kSlopeTerms;
        double factor = 1;  // (k+1)/(k+2)! for the last k
        for (int k = 2; k <= terms + 1; ++k) factor /= k;
        V series = splat<S>(S(factor * terms));
        for (int k = terms - 2; k >= 0; --k) {
            factor *= k + 3;
            series = series * x + S(factor * (k + 1));
        }
        const V direct = (x * change + (x - change)) * (inverse * inverse);
        return x * x < S(0.0625) ? step * step * series : direct;
    }

    // Scratch of backward for one channel's tile
    struct Scratch {
        alignas(64) V before[kTile][2];                   // h_{t−1}
        alignas(64) V discrete[kTile][2];                 // as `discretize` has it
        alignas(64) V y[kTile], by_u[kTile], by_delta[kTile];  // sums over states, lane by lane
    };

    // Gradients of NV vectors of states. B, C and their gradients' rows begin at those states; so do the others.
    template <int NV, bool exact>
    static void tile_gradients(Scratch &s, const S *a2_, const S *a1_, const S *inverse_, const S *start, S *gradient,
                               S *grad_A, Column u, Column delta, Column grad_y, Rows<const S> B, Rows<const S> C,
                               Rows<S> grad_B, Rows<S> grad_C, bool first, bool outputs) {
        V h[NV], g[NV], a2[NV], a[NV], inverse[NV], by_A[NV];
        for (int v = 0; v < NV; ++v) {
            h[v] = load<S>(start + v * W);
            g[v] = load<S>(gradient + v * W);
            a2[v] = load<S>(a2_ + v * W);
            a[v] = load<S>(a1_ + v * W);
            inverse[v] = load<S>(inverse_ + v * W);
            by_A[v] = load<S>(grad_A + v * W);
        }
        constexpr int steps = 2;
        for (int t = 0; t < kTile; t += steps) {
            V discrete[steps * NV];
            discretize<NV, steps, exact>(delta, t, a2, discrete);
            for (int i = 0; i < steps; ++i)
                for (int v = 0; v < NV; ++v) {
                    const V b = load<S>(B(t + i, v)), now = discrete[i * NV + v];
                    s.before[t + i][v] = h[v];
                    s.discrete[t + i][v] = now;
                    h[v] = next<exact>(h[v], now, b, inverse[v], splat<S>(delta[t + i]), splat<S>(u[t + i]));
                }
        }
        for (int t = kTile - 1; t >= 0; --t) {
            const V step = splat<S>(delta[t]), x = splat<S>(u[t]), dy = splat<S>(grad_y[t]);
            V y = first ? V{} : s.y[t], by_u = first ? V{} : s.by_u[t], by_delta = first ? V{} : s.by_delta[t];
            for (int v = 0; v < NV; ++v) {
                const V before = s.before[t][v], discrete = s.discrete[t][v];
                const V b = load<S>(B(t, v)), c = load<S>(C(t, v)), xb = x * b;
                if (outputs) y += c * h[v];
                store<S>(grad_C(t, v), load<S>(grad_C(t, v)) + dy * h[v]);
                g[v] += dy * c;  // gradient of h_t

                const V weighted = g[v] * (exact ? discrete * inverse[v] : step);
                by_u += weighted * b;
                store<S>(grad_B(t, v), load<S>(grad_B(t, v)) + weighted * x);

                const V decayed = g[v] * decay_of<exact>(discrete);  // gradient of h_{t−1}
                if (exact) {
                    by_delta += decayed * (a[v] * before + xb);
                    by_A[v] += g[v] * xb * weight_by_A(step, step * a[v], discrete, inverse[v]);
                } else {
                    by_delta += decayed * a[v] * before + g[v] * xb;
                }
                by_A[v] += decayed * before * step;
                g[v] = decayed;
                h[v] = before;
            }
            if (outputs) s.y[t] = y;
            s.by_u[t] = by_u;
            s.by_delta[t] = by_delta;
        }
        for (int v = 0; v < NV; ++v) {
            store<S>(gradient + v * W, g[v]);
            store<S>(grad_A + v * W, by_A[v]);
        }
    }

    // Sums of lanes into a column of (kTile, stride)
    static void sum_tile(V *lanes, S *to, int64_t stride) {
        alignas(64) S sums[kTile];
        for (int t = 0; t < kTile; t += W) sum_lanes<S>(lanes + t, sums + t);
        for (int t = 0; t < kTile; ++t) to[t * stride] = sums[t];
    }
};
