// Backward of the scan, which processes tiles from the end. For each tile it recomputes the states from the stored
// start, then runs the gradient of the state through the tile. With fewer samples than threads, a first pass through Δ,
// C and the outputs' gradient computes the gradient of the state at the end of each part of the sequence. The parts
// then run in parallel. All sums of gradients over positions and channels have an order that does not depend on the
// number of threads. That number only determines how the first pass divides the sequence, and so how it rounds.
#pragma once

#include "scan_parts.h"
#include "scan_recurrence.h"

template <class S>
struct ScanBackward : ScanParts<S> {
    using Parts = ScanParts<S>;
    using Steps = Recurrence<S>;
    using Column = typename Steps::Column;
    using Line = typename Steps::Line;
    using Inputs = typename Tiles<S>::Inputs;
    using V = Real<S>;
    using Parts::matrix, Parts::p, Parts::row, Parts::states, Parts::tiles, Parts::W;
    using Parts::Parts;

    template <bool exact>
    void run() const {
        // The number of parts does not depend on the number of threads, so sums always have the same order. Parts of a
        // long sequence have about four tiles or more, so that a part's sums are small compared with its tiles.
        const int64_t part_count = std::min<int64_t>(ceil_divide(tiles.count, 4), 32), width = p.channels * states;
        std::vector<Sums> sums(p.batch * part_count);
        const auto run_part = [&](int64_t b, int64_t part, S *gradient) {
            Sums &own = sums[b * part_count + part];
            own = Sums(*this);  // on the thread that needs the sums, as zeroing large sums takes a while
            run_gradients<exact>(b, tiles.count * part / part_count, tiles.count * (part + 1) / part_count, gradient, own);
        };
        if (p.batch >= p.threads.count) {
            for_each(p.threads, p.batch, [&](int64_t b) {
                Buffer<S> gradient(width);
                load_last(gradient, b, 0, p.channels);
                for (int64_t part = part_count - 1; part >= 0; --part) run_part(b, part, gradient);
            });
        } else {
            Buffer<S> ends(p.batch * part_count * width);
            this->run_parts(
                true,
                [&](const Unit &unit, S *state) { load_last(state, unit.b, unit.first, unit.count); },
                [&](const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, bool final) {
                    run_carry<exact>(unit, begin, end, state, steps, final ? static_cast<S *>(ends) : nullptr,
                                     part_count);
                },
                [](const Unit &, const S *) {});
            for_each(p.threads, p.batch * part_count,
                     [&](int64_t task) { run_part(task / part_count, task % part_count, ends + task * width); });
        }
        add_up(sums);
    }

  private:
    // Sums over the positions of one part of the sequence
    struct Sums {
        Buffer<S> A;        // (channels, states)
        Buffer<S> D, bias;  // (groups, kTile, channels in a group): sums over tiles
        Buffer<S> weight;   // (channels, row)

        Sums() = default;
        explicit Sums(const ScanBackward &scan)
            : A(scan.p.channels * scan.states), D(kTile * scan.p.channels), bias(kTile * scan.p.channels),
              weight(scan.p.weight ? scan.p.channels * scan.row : 0) {}
    };

    // Gradients of one group of channels for the current tile
    struct GroupGradients {
        Inputs in;
        Buffer<S> rows;                                 // (kTile, row): of B, C and, with projection, Δ
        Buffer<S> by_u, by_delta, y, grad_y, grad_z;    // (kTile, channels in the group)
        Buffer<S> by_x;                                 // (kTile, channels), with projection
        Buffer<S> start;                                // (states): the state before the tile, for one channel

        GroupGradients(const ScanBackward &scan, const Unit &unit)
            : in(scan.tiles, unit), rows(kTile * scan.row), by_u(kTile * unit.count), by_delta(kTile * unit.count),
              y(kTile * unit.count), grad_y(kTile * unit.count), grad_z(kTile * unit.count),
              by_x(scan.p.weight ? kTile * scan.tiles.channels : 0), start(scan.states) {}
    };

    // Load the gradient of the last state, for channels [first, first + count) of a sample
    void load_last(S *to, int64_t b, int64_t first, int64_t count) const {
        if (!p.grad_last_state) return;
        const S *last = static_cast<const S *>(p.grad_last_state) + (b * p.channels + first) * p.states;
        for (int64_t c = 0; c < count; ++c)
            std::copy(last + c * p.states, last + (c + 1) * p.states, to + c * states);
    }

    // Load the gradient of the ungated output y, and the gradient of the gate's input z without its factor y
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

    // Run the gradient of a unit's states from tile end − 1 to tile begin, and store the gradient at the end of each
    // part in `ends` (batch, parts, channels, states), unless `ends` is null
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
                this->for_states([&](auto NV, int64_t n) {
                    const int64_t at = (unit.first + i) * states + n;
                    Steps::template carry<NV, exact>(state + i * states + n, matrix.A2 + at, delta,
                                                     {grad_y + i, unit.count}, {in.C + n, in.C_row});
                });
                if (steps)
                    for (int t = 0; t < kTile; ++t) steps[i] += delta[t];
            }
        }
    }

    // Compute the gradients of tiles [begin, end) of a sample. `gradient` (channels, states) enters as the gradient of the
    // state after these tiles, and leaves as the gradient of the state before them.
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
        typename Steps::Scratch s;
        tiles.template load_inputs<true>(in, tile, Tiles<S>::both);
        load_grad_y(to.grad_y, to.grad_z, unit, tile);
        std::fill(to.rows + 0, to.rows + kTile * row, S(0));
        for (int64_t i = 0; i < unit.count; ++i) {
            const int64_t d = unit.first + i;
            const S *from = this->start_of(unit.b, tile, d);
            std::copy(from, from + p.states, to.start + 0);
            const Line u({in.u + i, unit.count}), delta({in.delta + i, unit.count}), dy({to.grad_y + i, unit.count});
            s.clear();
            this->for_states([&](auto NV, int64_t n) {
                const int64_t at = d * states + n;
                const auto run = p.z ? Steps::template tile_gradients<NV, exact, true>
                                     : Steps::template tile_gradients<NV, exact, false>;
                run(s, matrix.A2 + at, matrix.A1 + at, matrix.inverse_A + at, to.start + n, gradient + at, sums.A + at, u,
                    delta, dy, {in.B + n, in.B_row}, {in.C + n, in.C_row}, {to.rows + n, row},
                    {to.rows + tiles.at_C + n, row});
            });
            Steps::sum_tile(s.by_u, to.by_u + i, unit.count);
            Steps::sum_tile(s.by_delta, to.by_delta + i, unit.count);
            if (p.z) Steps::sum_tile(s.y, to.y + i, unit.count);
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
        if (p.add_grad_u)
            tiles.add_channels(to.by_u, p.grad_u, p.grad_u_strides, unit, tile);
        else
            tiles.save_channels(to.by_u, p.grad_u, p.grad_u_strides, unit, tile);
        if (p.z) tiles.save_channels(to.grad_z, p.grad_z, p.grad_z_strides, unit, tile);
    }

    // Compute the gradients of u and of the weight from those of B, C and Δ
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

    // Add up the parts' sums, which gives the gradients of A, D, bias and weight
    void add_up(const std::vector<Sums> &sums) const {
        for_each(p.threads, p.channels, [&](int64_t d) {
            for (int64_t n = 0; n < p.states; ++n) {
                S sum = 0;
                for (const Sums &part : sums) sum += part.A[d * states + n];
                if (p.A_is_log) sum *= matrix.A1[d * states + n];
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
                tiles.template weight_row<S>(p.grad_weight, p.grad_weight_bc, j)[d] = sum;
            }
        });
    }
};
