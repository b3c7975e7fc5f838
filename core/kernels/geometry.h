// The shape of the microkernels of each instruction set: shared by the plan,
// which cuts tiles to it, and by the kernels, which are built in it.
#ifndef ATTND_CORE_KERNELS_GEOMETRY_H_
#define ATTND_CORE_KERNELS_GEOMETRY_H_

#include <cstdint>

#include "core/machine.h"

namespace attnd {

// A microkernel keeps rows x vectors accumulators in registers: 24 of 32 on
// AVX-512, 12 of 16 on AVX2; the rest hold one row's broadcast and the vectors
// of the right-hand side.
struct Geometry {
  int64_t lanes;    // floats in a vector
  int64_t rows;     // query rows of a microkernel
  int64_t vectors;  // columns of a microkernel, in vectors

  constexpr int64_t panel_keys() const { return vectors * lanes; }
};

constexpr Geometry GeometryOf(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return {.lanes = 16, .rows = 6, .vectors = 4};
    case Isa::kAvx2:
      return {.lanes = 8, .rows = 6, .vectors = 2};
    case Isa::kScalar:
      break;
  }
  return {.lanes = 1, .rows = 2, .vectors = 4};
}

// The largest tile, which bounds what a tile keeps on the stack.
inline constexpr int64_t kMaxTileRows = 192;

// How a slot, the memory of one tile in progress, is divided. Offsets count
// floats; every part starts on a cache line.
struct SlotLayout {
  // Scores have one vector more than keys, so that rows do not share the sets
  // of the cache.
  int64_t score_stride;
  int64_t output_stride;  // v_head_dim in whole vectors
  int64_t scores;         // [tile_q, score_stride]
  int64_t output;         // [tile_q, output_stride]
  int64_t row_max_lanes;  // [tile_q, lanes]
  int64_t max;            // [tile_q]
  int64_t sum;            // [tile_q]
  int64_t alpha;          // [tile_q]
  int64_t total;

  static constexpr SlotLayout Of(const Geometry& geometry, int64_t tile_q,
                                 int64_t tile_kv, int64_t v_head_dim) {
    constexpr int64_t kLine = 16;
    const auto round = [](int64_t n) {
      return (n + kLine - 1) / kLine * kLine;
    };
    SlotLayout layout{};
    layout.score_stride = tile_kv + kLine;
    layout.output_stride = round(v_head_dim);
    int64_t at = kLine;  // the header
    const auto take = [&](int64_t floats) {
      const int64_t begin = at;
      at += round(floats);
      return begin;
    };
    layout.scores = take(tile_q * layout.score_stride);
    layout.output = take(tile_q * layout.output_stride);
    layout.row_max_lanes = take(tile_q * geometry.lanes);
    layout.max = take(tile_q);
    layout.sum = take(tile_q);
    layout.alpha = take(tile_q);
    layout.total = at;
    return layout;
  }
};

}  // namespace attnd

#endif  // ATTND_CORE_KERNELS_GEOMETRY_H_
