// The recurrence and its gradients, for one channel in one tile, with the states in the lanes of a few registers.
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

    // Rows of states at a tile's positions: B, C or their gradients
    template <class T>
    struct Rows {
        T *data;
        int64_t stride;
        T *operator()(int64_t t, int v) const { return data + t * stride + v * W; }
    };

    // Vectors of states that advance together: enough to hide the latency of a step of the recurrence
    static constexpr int kMostVectors = VECTOR_BYTES == 64 ? 2 : 4;

    // Positions whose exponentials are computed together, so that enough operations are in flight
    template <int NV>
    static constexpr int kSteps = NV > 2 ? 1 : 2;

    // Compute e^{ΔA} − 1 for the zero-order hold, or e^{ΔA} otherwise, for `steps` positions from t and NV vectors of states
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

    // Return the next state. With k = Bu/A, the zero-order hold is e^{ΔA}h + (e^{ΔA} − 1)k = h + (e^{ΔA} − 1)(h + k).
    template <bool exact>
    static V next(V h, V discrete, V b, V inverse, V step, V x) {
        return exact ? h + discrete * (h + x * (b * inverse)) : discrete * h + (step * x) * b;
    }

    // Run NV vectors of states, which start at `state`, through a tile; `sums` (kTile) accumulates ⟨C, h⟩ per lane
    template <int NV, bool exact, bool outputs>
    static void advance(S *state, const S *a2, const S *inverse, Column delta, Column u, Rows<const S> B,
                        Rows<const S> C, V *sums, bool first) {
        V h[NV], a[NV], inv[NV];
        for (int v = 0; v < NV; ++v) {
            h[v] = load<S>(state + v * W);
            a[v] = load<S>(a2 + v * W);
            inv[v] = load<S>(inverse + v * W);
        }
        // discretize the whole tile first, as these values do not depend on each other
        alignas(64) V discrete[kTile * NV];
        for (int t = 0; t < kTile; t += kSteps<NV>)
            discretize<NV, kSteps<NV>, exact>(delta, t, a, discrete + t * NV);
        for (int t = 0; t < kTile; ++t) {
            V sum = first ? V{} : sums[t];
            const V x = splat<S>(u[t]), step = splat<S>(delta[t]);
            for (int v = 0; v < NV; ++v) {
                h[v] = next<exact>(h[v], discrete[t * NV + v], load<S>(B(t, v)), inv[v], step, x);
                if (outputs) sum += h[v] * load<S>(C(t, v));
            }
            if (outputs) sums[t] = sum;
        }
        for (int v = 0; v < NV; ++v) store<S>(state + v * W, h[v]);
    }

    // Return e^{ΔA} from the result of `discretize`
    template <bool exact>
    static V decay_of(V discrete) {
        return exact ? discrete + S(1) : discrete;
    }

    // Run g_{t−1} = e^{ΔA} (g_t + C_t ∂y_t) from a tile's end to its start, bit-identical to `tile_gradients`
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

    // Scratch memory of backward for one channel in one tile, with NV vectors per position
    struct Scratch {
        alignas(64) V states[(kTile + 1) * kMostVectors];  // h_{t−1}, and the last state
        alignas(64) V discrete[kTile * kMostVectors];      // results of `discretize`
        alignas(64) V gradients[kTile * kMostVectors];     // of h_t
        alignas(64) V y[kTile], by_u[kTile], by_delta[kTile];  // sums over states, per lane

        void clear() {
            for (int t = 0; t < kTile; ++t) y[t] = by_u[t] = by_delta[t] = V{};
        }
    };

    // ∂/∂A (e^{ΔA} − 1)/A = (x e^x − (e^x − 1))/A² with x = ΔA. Where the numerator's terms cancel, the series
    // Δ² Σ (k+1)/(k+2)! x^k replaces the quotient.
    struct WeightByA {
        V a, square_of_inverse, small;  // small: the series applies if the square of the step is below this

        WeightByA(V a, V inverse)
            : a(a), square_of_inverse(inverse * inverse),
              small(square_of_inverse * S(Vector<S>::kSlopeBound * Vector<S>::kSlopeBound)) {}

        V operator()(V step, V change) const {
            constexpr int terms = Vector<S>::kSlopeTerms;
            const V x = step * a;
            double factor = 1;  // (k+1)/(k+2)! for the last k
            for (int k = 2; k <= terms + 1; ++k) factor /= k;
            V series = splat<S>(S(factor * terms));
            for (int k = terms - 2; k >= 0; --k) {
                factor *= k + 3;
                series = series * x + S(factor * (k + 1));
            }
            const V direct = (x * change + (x - change)) * square_of_inverse;
            const V square = step * step;
            return square < small ? square * series : direct;
        }
    };

    // Values of one channel at a tile's positions, contiguous
    struct Line {
        alignas(64) S at[kTile];

        explicit Line(Column column) {
            for (int t = 0; t < kTile; ++t) at[t] = column[t];
        }
    };

    // Compute the gradients of NV vectors of states. All pointers and rows start at the first of these states.
    template <int NV, bool exact, bool outputs>
    static void tile_gradients(Scratch &s, const S *a2_, const S *a1_, const S *inverse_, const S *start, S *gradient,
                               S *grad_A, const Line &u, const Line &delta, const Line &grad_y, Rows<const S> B,
                               Rows<const S> C, Rows<S> grad_B, Rows<S> grad_C) {
        run_states<NV, exact>(s, a2_, inverse_, start, {u.at, 1}, {delta.at, 1}, B);
        V g[NV];
        for (int v = 0; v < NV; ++v) g[v] = load<S>(gradient + v * W);
        for (int t = kTile - 1; t >= 0; --t) {
            const V dy = splat<S>(grad_y.at[t]);
            for (int v = 0; v < NV; ++v) {
                g[v] += dy * load<S>(C(t, v));
                s.gradients[t * NV + v] = g[v];
                g[v] = rounded<S>(g[v] * decay_of<exact>(s.discrete[t * NV + v]));
            }
        }
        for (int v = 0; v < NV; ++v) store<S>(gradient + v * W, g[v]);

        // the remaining gradients do not depend on other positions
        for (int v = 0; v < NV; ++v) {
            const V a = load<S>(a1_ + v * W), inverse = load<S>(inverse_ + v * W);
            const WeightByA weight_by_A(a, inverse);
            V by_A = load<S>(grad_A + v * W);
            const S *b_at = B(0, v), *c_at = C(0, v);
            S *grad_b_at = grad_B(0, v), *grad_c_at = grad_C(0, v);
            const V *states = s.states + v, *discretes = s.discrete + v, *gradients = s.gradients + v;
            for (int t = 0; t < kTile; ++t) {
                const V step = splat<S>(delta.at[t]), x = splat<S>(u.at[t]), dy = splat<S>(grad_y.at[t]);
                const V before = states[t * NV], h = states[(t + 1) * NV];
                const V discrete = discretes[t * NV], by_h = gradients[t * NV];
                const V b = load<S>(b_at), xb = x * b;
                if (outputs) s.y[t] += load<S>(c_at) * h;
                store<S>(grad_c_at, load<S>(grad_c_at) + dy * h);
                const V weighted = by_h * (exact ? discrete * inverse : step);
                const V decayed = by_h * decay_of<exact>(discrete);  // gradient of h_{t−1}
                s.by_u[t] += weighted * b;
                store<S>(grad_b_at, load<S>(grad_b_at) + weighted * x);
                if (exact) {
                    s.by_delta[t] += decayed * (a * before + xb);
                    by_A += by_h * xb * weight_by_A(step, discrete);
                } else {
                    s.by_delta[t] += decayed * a * before + by_h * xb;
                }
                by_A += decayed * before * step;
                b_at += B.stride, c_at += C.stride, grad_b_at += grad_B.stride, grad_c_at += grad_C.stride;
            }
            store<S>(grad_A + v * W, by_A);
        }
    }

    // Run NV vectors of states through a tile, and keep the state at every position
    template <int NV, bool exact>
    static void run_states(Scratch &s, const S *a2, const S *inverse, const S *start, Column u, Column delta,
                           Rows<const S> B) {
        V h[NV], a[NV], inv[NV];
        for (int v = 0; v < NV; ++v) {
            h[v] = load<S>(start + v * W);
            a[v] = load<S>(a2 + v * W);
            inv[v] = load<S>(inverse + v * W);
        }
        for (int t = 0; t < kTile; t += kSteps<NV>)
            discretize<NV, kSteps<NV>, exact>(delta, t, a, s.discrete + t * NV);
        for (int t = 0; t < kTile; ++t) {
            const V x = splat<S>(u[t]), step = splat<S>(delta[t]);
            for (int v = 0; v < NV; ++v) {
                s.states[t * NV + v] = h[v];
                h[v] = next<exact>(h[v], s.discrete[t * NV + v], load<S>(B(t, v)), inv[v], step, x);
            }
        }
        for (int v = 0; v < NV; ++v) s.states[kTile * NV + v] = h[v];
    }

    // Sum lanes into a column of (kTile, stride)
    static void sum_tile(V *lanes, S *to, int64_t stride) {
        alignas(64) S sums[kTile];
        for (int t = 0; t < kTile; t += W) sum_lanes<S>(lanes + t, sums + t);
        for (int t = 0; t < kTile; ++t) to[t * stride] = sums[t];
    }
};
