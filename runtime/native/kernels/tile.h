// The loops around a wide matmul kernel: which rows of weights and activations meet, and in what order.
//
// Everything here has internal linkage, so each file gets a copy compiled with its own flags and none can be
// linked into code for another CPU.  Include it from wide kernel files only.
//
// A Kernel has
//     using Acc                     lanes of partial sums of one output
//     kRows, kOuts                  largest tile: activation rows and weight rows that share loads
//     kChunkUnits                   units of n_in worked on before the next weight row, so that the tile
//     stays in L1 units(n_in)                   number of units zero(), total(Acc)            the start of a
//     sum, and its lanes added up in a fixed order dot<outs, rows>(Dot, Acc*)    acc[outs][rows] += units
//     [begin, end) of the tile
// One output's sum runs over the units in order whatever the tile, so its bits do not depend on the tile.
#pragma once

#include "kernels.h"

namespace quantd {
namespace {

// One call of a kernel: weight rows row_bytes apart, activation rows act_stride apart.
struct Dot {
    const uint8_t* weight;
    int64_t row_bytes;
    const uint8_t* act;
    int64_t act_stride;
    int64_t n_in;
    int64_t begin, end;  // units
};

constexpr int64_t kOutGroup = 16;  // weight rows that meet a tile of activations while it lies in L1

template <class Kernel>
void store_result(const MatmulArgs& args, int64_t r, int64_t o, const typename Kernel::Acc& acc) {
    float value = Kernel::total(acc);
    if (args.bias != nullptr) value += args.bias[o];
    float& out = args.out[r * args.out_stride + o];
    out = args.accumulate ? out + value : value;
}

// kTileRows activation rows from r against weight rows [begin, end), at most kOutGroup of them.
template <class Kernel, int kTileRows>
void run_tile(const MatmulArgs& args, int64_t begin, int64_t end, int64_t r) {
    typename Kernel::Acc acc[kOutGroup][kTileRows];
    for (int64_t o = begin; o < end; ++o) {
        for (int i = 0; i < kTileRows; ++i) acc[o - begin][i] = Kernel::zero();
    }
    const int64_t n_units = Kernel::units(args.n_in);
    const int64_t chunk = end - begin <= Kernel::kOuts ? n_units : Kernel::kChunkUnits;
    for (int64_t first = 0; first < n_units; first += chunk) {
        Dot dot{nullptr,
                args.row_bytes,
                args.act + r * args.act_stride,
                args.act_stride,
                args.n_in,
                first,
                first + chunk < n_units ? first + chunk : n_units};
        for (int64_t o = begin; o < end;) {
            dot.weight = args.weight + o * args.row_bytes;
            if (end - o >= Kernel::kOuts) {
                Kernel::template dot<Kernel::kOuts, kTileRows>(dot, acc[o - begin]);
                o += Kernel::kOuts;
            } else {
                Kernel::template dot<1, kTileRows>(dot, acc[o - begin]);
                o += 1;
            }
        }
    }
    for (int64_t o = begin; o < end; ++o) {
        for (int i = 0; i < kTileRows; ++i) store_result<Kernel>(args, r + i, o, acc[o - begin][i]);
    }
}

// The tile for `rows` activation rows, 1 <= rows <= kTileRows.
template <class Kernel, int kTileRows>
void run_tile_of(int64_t rows, const MatmulArgs& args, int64_t begin, int64_t end, int64_t r) {
    if constexpr (kTileRows > 1) {
        if (rows < kTileRows) return run_tile_of<Kernel, kTileRows - 1>(rows, args, begin, end, r);
    }
    run_tile<Kernel, kTileRows>(args, begin, end, r);
}

template <class Kernel>
void run_matmul(const MatmulArgs& args) {
    // With few rows the weights come from memory and are read row after row, as they lie there.
    const int64_t step = args.n_rows <= 2 ? Kernel::kOuts : kOutGroup;
    for (int64_t o = args.out_begin; o < args.out_end; o += step) {
        const int64_t end = o + step < args.out_end ? o + step : args.out_end;
        for (int64_t r = 0; r < args.n_rows; r += Kernel::kRows) {
            const int64_t left = args.n_rows - r;
            run_tile_of<Kernel, Kernel::kRows>(left < Kernel::kRows ? left : Kernel::kRows, args, o, end, r);
        }
    }
}

}  // namespace
}  // namespace quantd
