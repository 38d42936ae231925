// Forward of the scan: outputs, the last state, and the tile-start states from which backward recomputes all others.
#pragma once

#include "scan_parts.h"
#include "scan_recurrence.h"

// Number of outputs to collect before they are written, if threads divide the channels of a sample among themselves
constexpr int64_t kWaiting = 1 << 14;

template <class S>
struct ScanForward : ScanParts<S> {
    using Parts = ScanParts<S>;
    using Steps = Recurrence<S>;
    using Column = typename Steps::Column;
    using Inputs = typename Tiles<S>::Inputs;
    using V = Real<S>;
    using Parts::matrix, Parts::p, Parts::row, Parts::states, Parts::tiles, Parts::W;
    using Parts::Parts;

    template <bool exact>
    void run() const {
        this->run_parts(
            false, [](const Unit &, S *) {},
            [&](const Unit &unit, int64_t begin, int64_t end, S *state, S *steps, bool final) {
                if (final)
                    run_tiles<exact, true>(unit, begin, end, state, steps);
                else
                    run_tiles<exact, false>(unit, begin, end, state, steps);
            },
            [&](const Unit &unit, const S *state) {
                S *last = static_cast<S *>(p.last_state) + (unit.b * p.channels + unit.first) * p.states;
                for (int64_t c = 0; c < unit.count; ++c)
                    std::copy(state + c * states, state + c * states + p.states, last + c * p.states);
            });
    }

  private:
    // Run a unit through tiles [begin, end) from `state` (unit.count, states). Without outputs, only advance the state,
    // and add up Δ in `steps` (unit.count).
    template <bool exact, bool outputs>
    void run_tiles(const Unit &unit, int64_t begin, int64_t end, S *state, S *steps) const {
        Inputs in(tiles, unit);
        const int64_t size = kTile * unit.count;
        // Threads that divide the channels of a sample among themselves write to the same cache lines, and would wait
        // for each other at every tile. So outputs are written many tiles at a time.
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
                if (outputs && p.starts) std::copy(h, h + p.states, this->start_of(unit.b, tile, d));
                this->for_states([&](auto NV, int64_t n) {
                    const int64_t at = d * states + n;
                    Steps::template advance<NV, exact, outputs>(h + n, matrix.A2 + at, matrix.inverse_A + at, delta, u,
                                                                {in.B + n, in.B_row}, {in.C + n, in.C_row}, sums, n == 0);
                });
                if (outputs)
                    Steps::sum_tile(sums, y + i, unit.count);
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
};
