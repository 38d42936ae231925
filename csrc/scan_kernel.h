// The scan itself, forward and backward.
//
// Positions are taken in tiles of kTile. A tile's u, Δ, B and C are first gathered, with softplus and whatever strides,
// into short arrays that stay in the first-level cache; the recurrence then runs along a channel's tile with the states
// in the lanes of a few registers. Forward stores the states at tile starts. Backward first runs the gradient of the
// state from the end to the start and keeps it at tile ends; then every tile can be done on its own: its states are
// recomputed from the stored start, and gradients of B and C are summed over channels in a fixed order.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "scan.h"
#include "vector_math.h"

// the largest number of channels that share one gathering of B and C in forward
constexpr int64_t kBlock = 8;

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Work>
void for_each(const ScanProblem &p, int64_t count, Work work) {
    parallel_for(p, count, [](void *context, int64_t i) { (*static_cast<Work *>(context))(i); }, &work);
}

template <class S>
struct Scan {
    using V = Real<S>;
    static constexpr int W = kWidth<S>;

    const ScanProblem &p;
    const int64_t length = p.outer * p.inner;
    const int64_t tiles = ceil_divide(length, kTile);
    const int64_t per_group = p.channels / p.groups;
    const int64_t padded = ceil_divide(p.states, W) * W;  // states, filled up to whole vectors

    // A by channel: times log₂e, as it is, and its reciprocal
    std::vector<S> A2, A1, inverse_A;

    explicit Scan(const ScanProblem &problem) : p(problem) {
        A2.resize(p.channels * padded);
        A1.resize(p.channels * padded);
        inverse_A.resize(p.channels * padded);
        const S *A = static_cast<const S *>(p.A);
        for (int64_t d = 0; d < p.channels; ++d)
            for (int64_t n = 0; n < padded; ++n) {
                S a = n < p.states ? A[d * p.states + n] : S(-1);
                // an A this small acts as zero does, and spares (e^{ΔA} − 1)/A the special case
                if (std::abs(a) < S(1e-20)) a = S(-1e-20);
                A1[d * padded + n] = a;
                A2[d * padded + n] = a * S(kLog2E);
                inverse_A[d * padded + n] = S(1) / a;
            }
    }

    // Offsets of a tile's positions in a tensor; positions past the end repeat the last one, and are not used
    struct Offsets {
        int64_t at[kTile];
    };

    int used(int64_t tile) const { return static_cast<int>(std::min<int64_t>(kTile, length - tile * kTile)); }

    Offsets offsets(int64_t tile, int64_t outer_stride, int64_t inner_stride) const {
        Offsets result;
        int64_t row = tile * kTile / p.inner, column = tile * kTile % p.inner;
        int64_t at = row * outer_stride + column * inner_stride;
        const int count = used(tile);
        for (int t = 0; t < count; ++t) {
            result.at[t] = at;
            at += inner_stride;
            if (++column == p.inner) {
                column = 0;
                at = ++row * outer_stride;
            }
        }
        for (int t = count; t < kTile; ++t) result.at[t] = result.at[count - 1];
        return result;
    }

    // One channel's values at a tile's positions; zeros past the end, which leave the state as it is
    void gather(S *to, const S *from, const Offsets &offset, int count) const {
        for (int t = 0; t < count; ++t) to[t] = from[offset.at[t]];
        for (int t = count; t < kTile; ++t) to[t] = S(0);
    }

    void scatter(const S *from, S *to, const Offsets &offset, int count) const {
        for (int t = 0; t < count; ++t) to[offset.at[t]] = from[t];
    }

    // B or C at a tile's positions, (kTile, padded)
    void gather_states(S *to, const void *tensor, const int64_t *strides, int64_t b, int64_t g, int64_t tile) const {
        const S *from = static_cast<const S *>(tensor) + b * strides[0] + g * strides[1];
        const Offsets offset = offsets(tile, strides[3], strides[4]);
        const int count = used(tile);
        for (int t = 0; t < count; ++t) {
            const S *position = from + offset.at[t];
            S *row = to + t * padded;
            if (strides[2] == 1)
                std::memcpy(row, position, p.states * sizeof(S));
            else
                for (int64_t n = 0; n < p.states; ++n) row[n] = position[n * strides[2]];
            for (int64_t n = p.states; n < padded; ++n) row[n] = S(0);
        }
        std::fill(to + count * padded, to + kTile * padded, S(0));
    }

    void scatter_states(const S *from, void *tensor, const int64_t *strides, int64_t b, int64_t g, int64_t tile) const {
        S *to = static_cast<S *>(tensor) + b * strides[0] + g * strides[1];
        const Offsets offset = offsets(tile, strides[3], strides[4]);
        const int count = used(tile);
        for (int t = 0; t < count; ++t)
            for (int64_t n = 0; n < p.states; ++n) to[offset.at[t] + n * strides[2]] = from[t * padded + n];
    }

    // Δ of one channel at a tile's positions, and its derivative by the δ that came in
    void gather_delta(S *delta, S *slope, int64_t b, int64_t d, const Offsets &offset, int count) const {
        const S *from = static_cast<const S *>(p.delta) + b * p.delta_strides[0] + d * p.delta_strides[1];
        gather(delta, from, offset, count);
        const S bias = p.delta_bias ? static_cast<const S *>(p.delta_bias)[d] : S(0);
        for (int t = 0; t < kTile; t += W) {
            V value = load<S>(delta + t) + bias, derivative = splat<S>(1);
            if (p.softplus) softplus<S>(value, value, derivative);
            store<S>(delta + t, value);
            store<S>(slope + t, derivative);
        }
        std::fill(delta + count, delta + kTile, S(0));
    }

    S *states_at(void *tensor, int64_t b, int64_t tile, int64_t d) const {
        return static_cast<S *>(tensor) + ((b * tiles + tile) * p.channels + d) * p.states;
    }

    void load_states(S *to, const S *from) const {
        std::copy(from, from + p.states, to);
        std::fill(to + p.states, to + padded, S(0));
    }

    // ---- forward -------------------------------------------------------------------------------------------------

    // Run a channel's states through a tile. sums (kTile) collects ⟨C, h⟩ lane by lane, for those states.
    template <int NV, bool exact, bool outputs>
    void advance(S *state, const S *a2, const S *inverse, const S *delta, const S *u, const S *B, const S *C, V *sums,
                 bool first) const {
        V h[NV], a[NV], inv[NV];
        for (int v = 0; v < NV; ++v) {
            h[v] = load<S>(state + v * W);
            a[v] = load<S>(a2 + v * W);
            inv[v] = load<S>(inverse + v * W);
        }
        for (int t = 0; t < kTile; ++t) {
            V sum = outputs && !first ? sums[t] : V{};
            const V step = splat<S>(delta[t]), x = splat<S>(u[t]), step_x = step * x;
            for (int v = 0; v < NV; ++v) {
                V decay, change;  // e^{ΔA} and e^{ΔA} − 1
                exp2_and_minus_1<S>(step * a[v], decay, change);
                const V b = load<S>(B + t * padded + v * W);
                h[v] = decay * h[v] + (exact ? change * inv[v] * (x * b) : step_x * b);
                if (outputs) sum += h[v] * load<S>(C + t * padded + v * W);
            }
            if (outputs) sums[t] = sum;
        }
        for (int v = 0; v < NV; ++v) store<S>(state + v * W, h[v]);
    }

    template <bool exact, bool outputs>
    void advance_all(S *state, int64_t d, const S *delta, const S *u, const S *B, const S *C, V *sums) const {
        const S *a2 = &A2[d * padded], *inverse = &inverse_A[d * padded];
        int64_t n = 0;
        for (; n + 2 * W <= padded; n += 2 * W)
            advance<2, exact, outputs>(state + n, a2 + n, inverse + n, delta, u, B + n, C + n, sums, n == 0);
        if (n < padded)
            advance<1, exact, outputs>(state + n, a2 + n, inverse + n, delta, u, B + n, C + n, sums, n == 0);
    }

    // Run channels [first, first + count) of one group through tiles [begin, end) from `state` (count, padded).
    // Without outputs only the state is advanced, and `steps` (count) collects the sum of Δ.
    template <bool exact, bool outputs>
    void run_forward(int64_t b, int64_t first, int64_t count, int64_t begin, int64_t end, S *state, S *steps) const {
        const int64_t g = first / per_group;
        std::vector<S> B(kTile * padded), C(kTile * padded);
        alignas(64) S delta[kTile], slope[kTile], u[kTile], y[kTile];
        alignas(64) V sums[kTile];
        for (int64_t tile = begin; tile < end; ++tile) {
            gather_states(B.data(), p.B, p.B_strides, b, g, tile);
            if (outputs) gather_states(C.data(), p.C, p.C_strides, b, g, tile);
            const Offsets at_u = offsets(tile, p.u_strides[2], p.u_strides[3]);
            const Offsets at_delta = offsets(tile, p.delta_strides[2], p.delta_strides[3]);
            const Offsets at_y = offsets(tile, p.y_strides[2], p.y_strides[3]);
            for (int64_t i = 0; i < count; ++i) {
                const int64_t d = first + i;
                gather(u, static_cast<const S *>(p.u) + b * p.u_strides[0] + d * p.u_strides[1], at_u, used(tile));
                gather_delta(delta, slope, b, d, at_delta, used(tile));
                S *h = state + i * padded;
                if (outputs && p.starts) std::copy(h, h + p.states, states_at(p.starts, b, tile, d));
                advance_all<exact, outputs>(h, d, delta, u, B.data(), C.data(), sums);
                if (outputs) {
                    for (int t = 0; t < kTile; t += W) sum_lanes<S>(sums + t, y + t);
                    const S skip = p.D ? static_cast<const S *>(p.D)[d] : S(0);
                    for (int t = 0; t < kTile; ++t) y[t] += skip * u[t];
                    scatter(y, static_cast<S *>(p.y) + b * p.y_strides[0] + d * p.y_strides[1], at_y, used(tile));
                } else {
                    for (int t = 0; t < kTile; ++t) steps[i] += delta[t];
                }
            }
        }
    }

    // Channels in a unit of work: as many as can share B and C while every thread has some
    int64_t block_size() const {
        int64_t block = std::min(kBlock, per_group);
        while (block > 1 && p.batch * p.groups * ceil_divide(per_group, block) < p.threads) block = (block + 1) / 2;
        return block;
    }

    struct Unit {
        int64_t b, first, count;
    };

    std::vector<Unit> units(int64_t block) const {
        std::vector<Unit> list;
        for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t g = 0; g < p.groups; ++g)
                for (int64_t i = 0; i < per_group; i += block)
                    list.push_back({b, g * per_group + i, std::min(block, per_group - i)});
        return list;
    }

    // Parts of the sequence: one, unless there are fewer units than threads and the sequence is long
    int64_t parts(int64_t unit_count) const {
        if (unit_count >= p.threads) return 1;
        return std::max<int64_t>(1, std::min(tiles / 16, ceil_divide(2 * p.threads, unit_count)));
    }

    // e^{A ΣΔ}: what is left of a state after a part
    void decay(S *state, int64_t d, S steps) const {
        for (int64_t n = 0; n < padded; n += W)
            store<S>(state + n, load<S>(state + n) * exp2<S>(load<S>(&A2[d * padded + n]) * steps));
    }

    // Run every unit through the sequence with `run(unit, begin, end, state, steps, final)`, in parts where needed:
    // all parts from a zero state first, then, as their starts are known, again. `backwards` goes from the end.
    template <class Run, class Initial, class Finish>
    void run_parts(bool backwards, Initial initial, Run run, Finish finish) const {
        const auto list = units(block_size());
        const int64_t part_count = parts(list.size()), unit_count = list.size();
        const int64_t row = kBlock * padded;
        std::vector<S> states(unit_count * part_count * row), steps(unit_count * part_count * kBlock);
        const auto range = [&](int64_t part, int64_t &begin, int64_t &end) {
            begin = tiles * part / part_count;
            end = tiles * (part + 1) / part_count;
        };
        // order in which parts follow each other
        const auto in_order = [&](int64_t i) { return backwards ? part_count - 1 - i : i; };
        if (part_count > 1)
            for_each(p, unit_count * (part_count - 1), [&](int64_t i) {
                const int64_t unit = i % unit_count, part = in_order(i / unit_count);
                int64_t begin, end;
                range(part, begin, end);
                S *state = &states[(unit * part_count + part) * row];
                run(list[unit], begin, end, state, &steps[(unit * part_count + part) * kBlock], false);
            });
        for (int64_t unit = 0; unit < unit_count; ++unit) {
            std::vector<S> entering(row);
            initial(list[unit], entering.data());
            for (int64_t i = 0; i < part_count; ++i) {
                const int64_t part = in_order(i);
                S *state = &states[(unit * part_count + part) * row];
                const std::vector<S> added(state, state + row);
                std::copy(entering.begin(), entering.end(), state);
                for (int64_t c = 0; c < list[unit].count; ++c) {
                    S *moving = &entering[c * padded];
                    decay(moving, list[unit].first + c, steps[(unit * part_count + part) * kBlock + c]);
                    for (int64_t n = 0; n < padded; ++n) moving[n] += added[c * padded + n];
                }
            }
        }
        for_each(p, unit_count * part_count, [&](int64_t i) {
            const int64_t unit = i % unit_count, part = i / unit_count;
            int64_t begin, end;
            range(part, begin, end);
            S *state = &states[(unit * part_count + part) * row];
            run(list[unit], begin, end, state, nullptr, true);
            if (part == in_order(part_count - 1)) finish(list[unit], state);
        });
    }

    template <bool exact>
    void forward() const {
        run_parts(
            false, [](const Unit &, S *) {},
            [&](const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, bool final) {
                if (final)
                    run_forward<exact, true>(unit.b, unit.first, unit.count, begin, end, state, steps);
                else
                    run_forward<exact, false>(unit.b, unit.first, unit.count, begin, end, state, steps);
            },
            [&](const Unit &unit, const S *state) {
                S *last = static_cast<S *>(p.last_state) + (unit.b * p.channels + unit.first) * p.states;
                for (int64_t c = 0; c < unit.count; ++c)
                    std::copy(state + c * padded, state + c * padded + p.states, last + c * p.states);
            });
    }

    // ---- backward ------------------------------------------------------------------------------------------------

    // g_{t−1} = e^{ΔA} (g_t + C_t ∂y_t), from a tile's end to its start
    template <int NV>
    void advance_gradient(S *gradient, const S *a2, const S *delta, const S *grad_y, const S *C) const {
        V g[NV], a[NV];
        for (int v = 0; v < NV; ++v) {
            g[v] = load<S>(gradient + v * W);
            a[v] = load<S>(a2 + v * W);
        }
        for (int t = kTile - 1; t >= 0; --t) {
            const V step = splat<S>(delta[t]), dy = splat<S>(grad_y[t]);
            for (int v = 0; v < NV; ++v) {
                g[v] += dy * load<S>(C + t * padded + v * W);
                g[v] *= exp2<S>(step * a[v]);
            }
        }
        for (int v = 0; v < NV; ++v) store<S>(gradient + v * W, g[v]);
    }

    void run_gradient(const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, S *carried) const {
        const int64_t b = unit.b, g = unit.first / per_group;
        std::vector<S> C(kTile * padded);
        alignas(64) S delta[kTile], slope[kTile], grad_y[kTile];
        for (int64_t tile = end - 1; tile >= begin; --tile) {
            gather_states(C.data(), p.C, p.C_strides, b, g, tile);
            const Offsets at_delta = offsets(tile, p.delta_strides[2], p.delta_strides[3]);
            const Offsets at_y = offsets(tile, p.grad_y_strides[2], p.grad_y_strides[3]);
            for (int64_t i = 0; i < unit.count; ++i) {
                const int64_t d = unit.first + i;
                const S *from = static_cast<const S *>(p.grad_y) + b * p.grad_y_strides[0] + d * p.grad_y_strides[1];
                gather(grad_y, from, at_y, used(tile));
                gather_delta(delta, slope, b, d, at_delta, used(tile));
                S *gradient = state + i * padded;
                if (carried) std::copy(gradient, gradient + p.states, states_at(carried, b, tile, d));
                const S *a2 = &A2[d * padded];
                int64_t n = 0;
                for (; n + 2 * W <= padded; n += 2 * W)
                    advance_gradient<2>(gradient + n, a2 + n, delta, grad_y, C.data() + n);
                if (n < padded) advance_gradient<1>(gradient + n, a2 + n, delta, grad_y, C.data() + n);
                if (steps)
                    for (int t = 0; t < kTile; ++t) steps[i] += delta[t];
            }
        }
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
        return x * x < S(0.16) ? step * step * series : direct;
    }

    // Scratch of one task in backward
    struct Scratch {
        std::vector<S> B, C, grad_B, grad_C;                   // (kTile, padded)
        alignas(64) V before[kTile][2];                        // h_{t−1}
        alignas(64) V decay[kTile][2], change[kTile][2];       // e^{ΔA} and e^{ΔA} − 1
        alignas(64) V by_u[kTile], by_delta[kTile];            // sums over states, lane by lane
        alignas(64) S delta[kTile], slope[kTile], u[kTile], grad_y[kTile], grad_u[kTile], grad_delta[kTile];

        explicit Scratch(int64_t padded) : B(kTile * padded), C(B), grad_B(B), grad_C(B) {}
    };

    // Gradients of a channel's tile for NV vectors of states from n on
    template <int NV, bool exact>
    void tile_gradients(Scratch &s, int64_t d, int64_t n, const S *start, const S *carried, S *grad_A) const {
        V h[NV], g[NV], a2[NV], a[NV], inverse[NV], by_A[NV];
        for (int v = 0; v < NV; ++v) {
            const int64_t at = n + v * W;
            h[v] = load<S>(start + at);
            g[v] = load<S>(carried + at);
            a2[v] = load<S>(&A2[d * padded + at]);
            a[v] = load<S>(&A1[d * padded + at]);
            inverse[v] = load<S>(&inverse_A[d * padded + at]);
            by_A[v] = load<S>(grad_A + at);
        }
        for (int t = 0; t < kTile; ++t) {
            const V step = splat<S>(s.delta[t]), x = splat<S>(s.u[t]), step_x = step * x;
            for (int v = 0; v < NV; ++v) {
                V decay, change;
                exp2_and_minus_1<S>(step * a2[v], decay, change);
                const V b = load<S>(&s.B[t * padded + n + v * W]);
                s.before[t][v] = h[v];
                s.decay[t][v] = decay;
                s.change[t][v] = change;
                h[v] = decay * h[v] + (exact ? change * inverse[v] * (x * b) : step_x * b);
            }
        }
        for (int t = kTile - 1; t >= 0; --t) {
            const V step = splat<S>(s.delta[t]), x = splat<S>(s.u[t]), dy = splat<S>(s.grad_y[t]);
            V by_u = n == 0 ? V{} : s.by_u[t], by_delta = n == 0 ? V{} : s.by_delta[t];
            for (int v = 0; v < NV; ++v) {
                const int64_t at = t * padded + n + v * W;
                const V change = s.change[t][v], before = s.before[t][v];
                const V b = load<S>(&s.B[at]), xb = x * b;
                store<S>(&s.grad_C[at], load<S>(&s.grad_C[at]) + dy * h[v]);
                g[v] += dy * load<S>(&s.C[at]);  // gradient of h_t

                const V weight = exact ? change * inverse[v] : step;
                const V weighted = g[v] * weight;
                by_u += weighted * b;
                store<S>(&s.grad_B[at], load<S>(&s.grad_B[at]) + weighted * x);

                const V decayed = g[v] * s.decay[t][v];  // gradient of h_{t−1}
                if (exact) {
                    by_delta += decayed * (a[v] * before + xb);
                    by_A[v] += g[v] * xb * weight_by_A(step, step * a[v], change, inverse[v]);
                } else {
                    by_delta += decayed * a[v] * before + g[v] * xb;
                }
                by_A[v] += decayed * before * step;
                g[v] = decayed;
                h[v] = before;
            }
            s.by_u[t] = by_u;
            s.by_delta[t] = by_delta;
        }
        for (int v = 0; v < NV; ++v) store<S>(grad_A + n + v * W, by_A[v]);
    }

    // Gradients of a part of the sequence, from its tiles' starts and ends; those of A, D and bias are the part's own
    template <bool exact>
    void part_gradients(int64_t b, int64_t begin, int64_t end, void *carried, S *grad_A, S *grad_D, S *grad_bias) const {
        Scratch s(padded);
        std::vector<S> start(padded), ending(padded);
        for (int64_t tile = begin; tile < end; ++tile) {
            const int count = used(tile);
            const Offsets at_u = offsets(tile, p.u_strides[2], p.u_strides[3]);
            const Offsets at_delta = offsets(tile, p.delta_strides[2], p.delta_strides[3]);
            const Offsets at_y = offsets(tile, p.grad_y_strides[2], p.grad_y_strides[3]);
            const Offsets at_grad_u = offsets(tile, p.grad_u_strides[2], p.grad_u_strides[3]);
            const Offsets at_grad_delta = offsets(tile, p.grad_delta_strides[2], p.grad_delta_strides[3]);
            for (int64_t g = 0; g < p.groups; ++g) {
                gather_states(s.B.data(), p.B, p.B_strides, b, g, tile);
                gather_states(s.C.data(), p.C, p.C_strides, b, g, tile);
                std::fill(s.grad_B.begin(), s.grad_B.end(), S(0));
                std::fill(s.grad_C.begin(), s.grad_C.end(), S(0));
                for (int64_t d = g * per_group; d < (g + 1) * per_group; ++d) {
                    const auto channel = [&](const void *tensor, const int64_t *strides) {
                        return const_cast<S *>(static_cast<const S *>(tensor)) + b * strides[0] + d * strides[1];
                    };
                    gather(s.u, channel(p.u, p.u_strides), at_u, count);
                    gather(s.grad_y, channel(p.grad_y, p.grad_y_strides), at_y, count);
                    gather_delta(s.delta, s.slope, b, d, at_delta, count);
                    load_states(start.data(), states_at(p.starts, b, tile, d));
                    load_states(ending.data(), states_at(carried, b, tile, d));
                    S *by_A = grad_A + d * padded;
                    int64_t n = 0;
                    for (; n + 2 * W <= padded; n += 2 * W)
                        tile_gradients<2, exact>(s, d, n, start.data(), ending.data(), by_A);
                    if (n < padded) tile_gradients<1, exact>(s, d, n, start.data(), ending.data(), by_A);
                    for (int t = 0; t < kTile; t += W) {
                        sum_lanes<S>(s.by_u + t, s.grad_u + t);
                        sum_lanes<S>(s.by_delta + t, s.grad_delta + t);
                    }
                    const S skip = p.D ? static_cast<const S *>(p.D)[d] : S(0);
                    for (int t = 0; t < count; ++t) {
                        s.grad_u[t] += skip * s.grad_y[t];
                        s.grad_delta[t] *= s.slope[t];
                        grad_D[d] += s.grad_y[t] * s.u[t];
                        grad_bias[d] += s.grad_delta[t];
                    }
                    scatter(s.grad_u, channel(p.grad_u, p.grad_u_strides), at_grad_u, count);
                    scatter(s.grad_delta, channel(p.grad_delta, p.grad_delta_strides), at_grad_delta, count);
                }
                scatter_states(s.grad_B.data(), p.grad_B, p.grad_B_strides, b, g, tile);
                scatter_states(s.grad_C.data(), p.grad_C, p.grad_C_strides, b, g, tile);
            }
        }
    }

    template <bool exact>
    void backward() const {
        std::vector<S> carried(p.batch * tiles * p.channels * p.states);
        run_parts(
            true,
            [&](const Unit &unit, S *state) {
                if (!p.grad_last_state) return;
                const S *last = static_cast<const S *>(p.grad_last_state);
                for (int64_t c = 0; c < unit.count; ++c)
                    load_states(state + c * padded, last + (unit.b * p.channels + unit.first + c) * p.states);
            },
            [&](const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, bool final) {
                run_gradient(unit, begin, end, state, steps, final ? carried.data() : nullptr);
            },
            [](const Unit &, const S *) {});

        // a number of parts that does not depend on the threads: the order of all sums is fixed
        const int64_t part_count = std::min<int64_t>(tiles, 32), tasks = p.batch * part_count;
        std::vector<S> by_A(tasks * p.channels * padded), by_D(tasks * p.channels), by_bias(tasks * p.channels);
        for_each(p, tasks, [&](int64_t task) {
            const int64_t b = task / part_count, part = task % part_count;
            part_gradients<exact>(b, tiles * part / part_count, tiles * (part + 1) / part_count, carried.data(),
                                  &by_A[task * p.channels * padded], &by_D[task * p.channels],
                                  &by_bias[task * p.channels]);
        });
        S *grad_A = static_cast<S *>(p.grad_A), *grad_D = static_cast<S *>(p.grad_D);
        S *grad_bias = static_cast<S *>(p.grad_delta_bias);
        for (int64_t d = 0; d < p.channels; ++d) {
            for (int64_t n = 0; n < p.states; ++n) {
                S sum = 0;
                for (int64_t task = 0; task < tasks; ++task) sum += by_A[(task * p.channels + d) * padded + n];
                grad_A[d * p.states + n] = sum;
            }
            S sum_D = 0, sum_bias = 0;
            for (int64_t task = 0; task < tasks; ++task) {
                sum_D += by_D[task * p.channels + d];
                sum_bias += by_bias[task * p.channels + d];
            }
            if (grad_D) grad_D[d] = sum_D;
            if (grad_bias) grad_bias[d] = sum_bias;
        }
    }
};
