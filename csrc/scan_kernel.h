// The scan itself, forward and backward.
//
// The recurrence runs along a channel's tile with the states in the lanes of a few registers. Forward stores the
// states at tile starts. Backward goes through tiles from the end: it recomputes a tile's states from the stored start,
// then runs the gradient of the state through it. Where there are fewer samples than threads, a pass over Δ, C and the
// outputs' gradient first finds the gradient of the state at the ends of some parts, which then go side by side. All
// sums over positions and channels have a fixed order.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "tile.h"

// Outputs that wait to be written together where threads share out channels
constexpr int64_t kWaiting = 1 << 14;

template <class S>
struct Scan {
    using V = Real<S>;
    using Inputs = typename Tiles<S>::Inputs;
    static constexpr int W = kWidth<S>;

    const ScanProblem &p;
    const Tiles<S> tiles;
    const int64_t states = tiles.states, row = tiles.row;

    // A by channel: times log₂e, as it is, and its reciprocal
    Buffer<S> A2, A1, inverse_A;

    explicit Scan(const ScanProblem &problem)
        : p(problem), tiles(problem), A2(p.channels * states), A1(p.channels * states), inverse_A(p.channels * states) {
        const S *A = static_cast<const S *>(p.A);
        for (int64_t d = 0; d < p.channels; ++d)
            for (int64_t n = 0; n < states; ++n) {
                S a = n < p.states ? A[d * p.states + n] : S(0);
                // an A this small acts as zero does, and spares (e^{ΔA} − 1)/A the special case
                constexpr S least = sizeof(S) == 4 ? S(1e-12) : S(1e-20);
                if (std::abs(a) < least) a = -least;
                A1[d * states + n] = a;
                A2[d * states + n] = a * S(kLog2E);
                inverse_A[d * states + n] = S(1) / a;
            }
    }

    S *start_of(int64_t b, int64_t tile, int64_t d) const {
        return static_cast<S *>(p.starts) + ((b * tiles.count + tile) * p.channels + d) * p.states;
    }

    // Call run with the number of vectors and the first state, until all states are done
    template <class Run>
    void for_states(Run run) const {
        int64_t n = 0;
        for (; n + 2 * W <= states; n += 2 * W) run(std::integral_constant<int, 2>(), n);
        if (n < states) run(std::integral_constant<int, 1>(), n);
    }

    // ---- one channel, one tile -----------------------------------------------------------------------------------

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

    // ---- sequences -----------------------------------------------------------------------------------------------

    // Units as large as they can be while every thread has one
    std::vector<Unit> units() const {
        int64_t size = tiles.per_group;
        while (size > 1 && p.batch * p.groups * ceil_divide(tiles.per_group, size) < p.threads.count) size = (size + 1) / 2;
        std::vector<Unit> list;
        for (int64_t b = 0; b < p.batch; ++b)
            for (int64_t g = 0; g < p.groups; ++g)
                for (int64_t i = 0; i < tiles.per_group; i += size)
                    list.push_back({b, g * tiles.per_group + i, std::min(size, tiles.per_group - i)});
        return list;
    }

    // Run a unit through tiles [begin, end) from `state` (unit.count, states). Without outputs only the state is
    // advanced, and `steps` (unit.count) collects the sum of Δ.
    template <bool exact, bool outputs>
    void run_forward(const Unit &unit, int64_t begin, int64_t end, S *state, S *steps) const {
        Inputs in(tiles, unit);
        const int64_t size = kTile * unit.count;
        // Threads that share out the channels of one sample write to the same cache lines, and would wait for each other
        // at every tile: outputs are written many tiles at a time.
        const int64_t waiting = unit.count < p.channels ? std::max<int64_t>(1, kWaiting / size) : 1;
        Buffer<S> ys(outputs ? waiting * size : 0), z(p.z ? size : 0);
        alignas(64) V sums[kTile];
        for (int64_t tile = begin; tile < end; ++tile) {
            S *y = ys + tile % waiting * size;
            tiles.template load_inputs<false>(in, tile, outputs ? Tiles<S>::both : Tiles<S>::only_B);
            for (int64_t i = 0; i < unit.count; ++i) {
                const int64_t d = unit.first + i;
                const Column u{in.u + i, unit.count}, delta{in.delta + i, unit.count};
                S *h = state + i * states;
                if (outputs && p.starts) std::copy(h, h + p.states, start_of(unit.b, tile, d));
                for_states([&](auto NV, int64_t n) {
                    const int64_t at = d * states + n;
                    advance<NV, exact, outputs>(h + n, A2 + at, inverse_A + at, delta, u, {in.B + n, in.B_row},
                                                {in.C + n, in.C_row}, sums, n == 0);
                });
                if (outputs)
                    sum_tile(sums, y + i, unit.count);
                else
                    for (int t = 0; t < kTile; ++t) steps[i] += delta[t];
            }
            if (!outputs) continue;
            if (p.z) tiles.load_channels(z, p.z, p.z_strides, unit, tile);
            for (int64_t i = 0; i < size; i += W) {
                V value = load<S>(y + i) + load<S>(in.skip + i) * load<S>(in.u + i);
                if (p.z) value *= silu<S>(load<S>(z + i)).value;
                store<S>(y + i, value);
            }
            const int64_t last = std::min(end, (tile / waiting + 1) * waiting) - 1;
            if (tile < last) continue;
            for (int64_t done = std::max(begin, tile / waiting * waiting); done <= tile; ++done)
                tiles.save_channels(ys + done % waiting * size, p.y, p.y_strides, unit, done);
        }
    }

    // Gradient of the output before its gate, and that of the gate's input but for its factor y
    void load_grad_y(S *grad_y, S *grad_z, const Unit &unit, int64_t tile) const {
        tiles.load_channels(grad_y, p.grad_y, p.grad_y_strides, unit, tile);
        if (!p.z) return;
        tiles.load_channels(grad_z, p.z, p.z_strides, unit, tile);
        for (int64_t i = 0; i < kTile * unit.count; i += W) {
            const auto gate = silu<S>(load<S>(grad_z + i));
            const V grad = load<S>(grad_y + i);
            store<S>(grad_y + i, grad * gate.value);
            store<S>(grad_z + i, grad * gate.slope);
        }
    }

    // Run the gradient of a unit's states from tile end − 1 to tile begin. At the end of each part of the sequence it is
    // kept in `ends` (batch, parts, channels, states), unless that is null.
    template <bool exact>
    void run_carry(const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, S *ends, int64_t parts) const {
        Inputs in(tiles, unit);
        Buffer<S> grad_y(kTile * unit.count), grad_z(p.z ? kTile * unit.count : 0);
        for (int64_t tile = end - 1; tile >= begin; --tile) {
            if (ends)
                for (int64_t part = 0; part < parts; ++part)
                    if (tile + 1 == tiles.count * (part + 1) / parts)
                        std::copy(state, state + unit.count * states,
                                  ends + ((unit.b * parts + part) * p.channels + unit.first) * states);
            tiles.template load_inputs<false>(in, tile, Tiles<S>::only_C);
            load_grad_y(grad_y, grad_z, unit, tile);
            for (int64_t i = 0; i < unit.count; ++i) {
                const Column delta{in.delta + i, unit.count};
                for_states([&](auto NV, int64_t n) {
                    carry<NV, exact>(state + i * states + n, A2 + (unit.first + i) * states + n, delta, {grad_y + i, unit.count},
                              {in.C + n, in.C_row});
                });
                if (steps)
                    for (int t = 0; t < kTile; ++t) steps[i] += delta[t];
            }
        }
    }

    // Sums over positions: of one part of the sequence, or of all
    struct Sums {
        Buffer<S> A;        // (channels, states)
        Buffer<S> D, bias;  // (groups, kTile, channels in a group): those over whole tiles
        Buffer<S> weight;   // (channels, row)

        explicit Sums(const Scan &scan)
            : A(scan.p.channels * scan.states), D(kTile * scan.p.channels), bias(kTile * scan.p.channels),
              weight(scan.p.weight ? scan.p.channels * scan.row : 0) {}
    };

    // Gradients of one group of channels, tile after tile
    struct GroupGradients {
        Inputs in;
        Buffer<S> rows;                                 // (kTile, row): those of B, C and, with projection, Δ
        Buffer<S> by_u, by_delta, y, grad_y, grad_z;    // (kTile, channels in the group)
        Buffer<S> by_x;                                 // (kTile, channels), with projection
        Buffer<S> start;                                // (states), of one channel

        GroupGradients(const Scan &scan, const Unit &unit)
            : in(scan.tiles, unit), rows(kTile * scan.row), by_u(kTile * unit.count), by_delta(kTile * unit.count),
              y(kTile * unit.count), grad_y(kTile * unit.count), grad_z(kTile * unit.count),
              by_x(scan.p.weight ? kTile * scan.tiles.channels : 0), start(scan.states) {}
    };

    // Gradients of tiles [begin, end) of a sample. `gradient` (channels, states) is that of the state after them, and
    // becomes that of the state before them.
    template <bool exact>
    void run_gradients(int64_t b, int64_t begin, int64_t end, S *gradient, Sums &sums) const {
        std::vector<GroupGradients> groups;
        for (int64_t g = 0; g < p.groups; ++g)
            groups.emplace_back(*this, Unit{b, g * tiles.per_group, tiles.per_group});
        for (int64_t tile = end - 1; tile >= begin; --tile)
            for (GroupGradients &group : groups) run_group<exact>(group, tile, gradient, sums);
    }

    template <bool exact>
    void run_group(GroupGradients &to, int64_t tile, S *gradient, Sums &sums) const {
        Inputs &in = to.in;
        const Unit &unit = in.unit;
        Scratch s;
        tiles.template load_inputs<true>(in, tile, Tiles<S>::both);
        load_grad_y(to.grad_y, to.grad_z, unit, tile);
        std::fill(to.rows + 0, to.rows + kTile * row, S(0));
        for (int64_t i = 0; i < unit.count; ++i) {
            const int64_t d = unit.first + i;
            const S *from = start_of(unit.b, tile, d);
            std::copy(from, from + p.states, to.start + 0);
            for_states([&](auto NV, int64_t n) {
                const int64_t at = d * states + n;
                tile_gradients<NV, exact>(s, A2 + at, A1 + at, inverse_A + at, to.start + n, gradient + at, sums.A + at,
                                          {in.u + i, unit.count}, {in.delta + i, unit.count},
                                          {to.grad_y + i, unit.count}, {in.B + n, in.B_row}, {in.C + n, in.C_row},
                                          {to.rows + n, row}, {to.rows + tiles.at_C + n, row}, n == 0, p.z != nullptr);
            });
            sum_tile(s.by_u, to.by_u + i, unit.count);
            sum_tile(s.by_delta, to.by_delta + i, unit.count);
            if (p.z) sum_tile(s.y, to.y + i, unit.count);
        }
        S *by_D = sums.D + kTile * unit.first, *by_bias = sums.bias + kTile * unit.first;
        for (int64_t i = 0; i < kTile * unit.count; i += W) {
            const V u = load<S>(in.u + i), skip = load<S>(in.skip + i), dy = load<S>(to.grad_y + i);
            const V by_delta = load<S>(to.by_delta + i) * load<S>(in.slope + i);
            if (p.z) store<S>(to.grad_z + i, load<S>(to.grad_z + i) * (load<S>(to.y + i) + skip * u));
            store<S>(to.by_u + i, load<S>(to.by_u + i) + skip * dy);
            store<S>(to.by_delta + i, by_delta);
            store<S>(by_D + i, load<S>(by_D + i) + dy * u);
            store<S>(by_bias + i, load<S>(by_bias + i) + by_delta);
        }
        if (p.weight) {
            project_gradients(to, sums);
        } else {
            const int64_t g = unit.first / tiles.per_group;
            tiles.save_channels(to.by_delta, p.grad_delta, p.grad_delta_strides, unit, tile);
            tiles.save_states(to.rows, p.grad_B, p.grad_B_strides, unit.b, g, tile);
            tiles.save_states(to.rows + tiles.at_C, p.grad_C, p.grad_C_strides, unit.b, g, tile);
        }
        tiles.save_channels(to.by_u, p.grad_u, p.grad_u_strides, unit, tile);
        if (p.z) tiles.save_channels(to.grad_z, p.grad_z, p.grad_z_strides, unit, tile);
    }

    // From gradients of B, C and Δ to those of u and of the weight
    void project_gradients(GroupGradients &to, Sums &sums) const {
        const int64_t channels = tiles.channels;
        for (int t = 0; t < kTile; ++t)
            for (int64_t d = 0; d < p.channels; ++d)
                to.rows[t * row + tiles.at_delta + d] = to.by_delta[t * p.channels + d];
        multiply<S>({to.in.x, 1, p.channels}, to.rows, row, sums.weight, row, p.channels, row, kTile, true);
        multiply<S>({to.rows, row, 1}, tiles.project_back, channels, to.by_x, channels, kTile, channels, row);
        for (int t = 0; t < kTile; ++t)
            for (int64_t d = 0; d < p.channels; ++d) to.by_u[t * p.channels + d] += to.by_x[t * channels + d];
    }

    // ---- threads -------------------------------------------------------------------------------------------------

    // Parts of the sequence: one, unless there are fewer units than threads and the sequence is long
    int64_t parts(int64_t unit_count) const {
        if (unit_count >= p.threads.count) return 1;
        return std::max<int64_t>(1, std::min(tiles.count / 16, ceil_divide(2 * p.threads.count, unit_count)));
    }

    // e^{A ΣΔ}: what is left of a state after a part
    void decay(S *state, int64_t d, S steps) const {
        for (int64_t n = 0; n < states; n += W)
            store<S>(state + n, load<S>(state + n) * exp2<S>(load<S>(A2 + d * states + n) * steps));
    }

    // Run every unit through the sequence with `run(unit, begin, end, state, steps, final)`, in parts where needed:
    // all parts from a zero state first, then, as their starts are known, again. `backwards` goes from the end.
    template <class Run, class Initial, class Finish>
    void run_parts(bool backwards, Initial initial, Run run, Finish finish) const {
        const std::vector<Unit> list = units();
        const int64_t unit_count = list.size(), part_count = parts(unit_count), width = list[0].count * states;
        Buffer<S> all_states(unit_count * part_count * width), all_steps(unit_count * part_count * list[0].count);
        const auto state_of = [&](int64_t unit, int64_t part) { return all_states + (unit * part_count + part) * width; };
        const auto steps_of = [&](int64_t unit, int64_t part) {
            return all_steps + (unit * part_count + part) * list[0].count;
        };
        const auto run_part = [&](int64_t unit, int64_t part, bool final) {
            run(list[unit], tiles.count * part / part_count, tiles.count * (part + 1) / part_count,
                state_of(unit, part), final ? nullptr : steps_of(unit, part), final);
        };
        // order in which parts follow each other
        const auto in_order = [&](int64_t i) { return backwards ? part_count - 1 - i : i; };
        for_each(p.threads, unit_count * (part_count - 1),
                 [&](int64_t i) { run_part(i % unit_count, in_order(i / unit_count), false); });
        for (int64_t unit = 0; unit < unit_count; ++unit) {
            Buffer<S> entering(width);
            initial(list[unit], entering);
            for (int64_t i = 0; i < part_count; ++i) {
                S *state = state_of(unit, in_order(i));
                const S *steps = steps_of(unit, in_order(i));
                for (int64_t k = 0; k < width; ++k) std::swap(entering[k], state[k]);  // now `entering` has what was added
                if (i + 1 == part_count) break;
                for (int64_t c = 0; c < list[unit].count; ++c) {
                    Buffer<S> moving(states);
                    std::copy(state + c * states, state + (c + 1) * states, static_cast<S *>(moving));
                    decay(moving, list[unit].first + c, steps[c]);
                    for (int64_t n = 0; n < states; ++n) entering[c * states + n] += moving[n];
                }
            }
        }
        for_each(p.threads, unit_count * part_count, [&](int64_t i) {
            const int64_t unit = i % unit_count, part = i / unit_count;
            run_part(unit, part, true);
            if (part == in_order(part_count - 1)) finish(list[unit], state_of(unit, part));
        });
    }

    template <bool exact>
    void forward() const {
        run_parts(
            false, [](const Unit &, S *) {},
            [&](const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, bool final) {
                if (final)
                    run_forward<exact, true>(unit, begin, end, state, steps);
                else
                    run_forward<exact, false>(unit, begin, end, state, steps);
            },
            [&](const Unit &unit, const S *state) {
                S *last = static_cast<S *>(p.last_state) + (unit.b * p.channels + unit.first) * p.states;
                for (int64_t c = 0; c < unit.count; ++c)
                    std::copy(state + c * states, state + c * states + p.states, last + c * p.states);
            });
    }

    // Gradient of the last state, channels [first, first + count) of a sample
    void load_last(S *to, int64_t b, int64_t first, int64_t count) const {
        if (!p.grad_last_state) return;
        const S *last = static_cast<const S *>(p.grad_last_state) + (b * p.channels + first) * p.states;
        for (int64_t c = 0; c < count; ++c)
            std::copy(last + c * p.states, last + (c + 1) * p.states, to + c * states);
    }

    template <bool exact>
    void backward() const {
        // a number that does not depend on the threads: sums have the same order whatever their number is. Parts of four
        // tiles or more, beside which a part's own sums are small.
        const int64_t part_count = std::min<int64_t>(ceil_divide(tiles.count, 4), 32), width = p.channels * states;
        std::vector<Sums> sums;
        for (int64_t task = 0; task < p.batch * part_count; ++task) sums.emplace_back(*this);
        const auto run_part = [&](int64_t b, int64_t part, S *gradient) {
            run_gradients<exact>(b, tiles.count * part / part_count, tiles.count * (part + 1) / part_count, gradient,
                                 sums[b * part_count + part]);
        };
        if (p.batch >= p.threads.count) {
            for_each(p.threads, p.batch, [&](int64_t b) {
                Buffer<S> gradient(width);
                load_last(gradient, b, 0, p.channels);
                for (int64_t part = part_count - 1; part >= 0; --part) run_part(b, part, gradient);
            });
        } else {
            Buffer<S> ends(p.batch * part_count * width);
            run_parts(
                true,
                [&](const Unit &unit, S *state) { load_last(state, unit.b, unit.first, unit.count); },
                [&](const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, bool final) {
                    run_carry<exact>(unit, begin, end, state, steps, final ? static_cast<S *>(ends) : nullptr, part_count);
                },
                [](const Unit &, const S *) {});
            for_each(p.threads, p.batch * part_count,
                     [&](int64_t task) { run_part(task / part_count, task % part_count, ends + task * width); });
        }
        add_up(sums);
    }

    // Gradients that are sums over all positions, channel by channel
    void add_up(const std::vector<Sums> &sums) const {
        for_each(p.threads, p.channels, [&](int64_t d) {
            for (int64_t n = 0; n < p.states; ++n) {
                S sum = 0;
                for (const Sums &part : sums) sum += part.A[d * states + n];
                static_cast<S *>(p.grad_A)[d * p.states + n] = sum;
            }
            S by_D = 0, by_bias = 0;
            const int64_t n = tiles.per_group, first = d / n * n * kTile + d % n;
            for (const Sums &part : sums)
                for (int t = 0; t < kTile; ++t) {
                    by_D += part.D[first + t * n];
                    by_bias += part.bias[first + t * n];
                }
            if (p.grad_D) static_cast<S *>(p.grad_D)[d] = by_D;
            if (p.grad_delta_bias) static_cast<S *>(p.grad_delta_bias)[d] = by_bias;
            if (!p.weight) return;
            for (int64_t j = 0; j < p.channels + 2 * p.states; ++j) {
                S sum = 0;
                for (const Sums &part : sums) sum += part.weight[d * row + tiles.column(j)];
                static_cast<S *>(p.grad_weight)[j * p.channels + d] = sum;
            }
        });
    }
};
