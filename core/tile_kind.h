// The kinds of tiles: how a tile of query rows meets its keys and values. A
// plan chooses the kind of every batch entry once. Whatever differs between
// kinds is a column of the tables below, or a kernel class of that kind.
#ifndef ATTND_CORE_TILE_KIND_H_
#define ATTND_CORE_TILE_KIND_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/checked_math.h"

namespace attnd {

// The steps that an AMX product takes at once. That is also the number of rows
// of a tile register, and the number of words in each row.
inline constexpr int64_t kAmxSteps = 16;
inline constexpr int64_t kAmxTileWords = kAmxSteps * kAmxSteps;
// Rows and columns of a block, which has 2 x 2 result tiles. Also the number of
// bf16 in a row of a tile register, which are dimensions or keys in pairs.
inline constexpr int64_t kAmxBlock = 2 * kAmxSteps;

// An f32 is exactly the sum of this many bf16, the terms, because together they
// hold its 24 bits. Products of three terms are called bf16x3.
inline constexpr int kBf16Terms = 3;

// The largest tile, which bounds what a tile keeps on the stack.
inline constexpr int64_t kMaxTileRows = 256;
inline constexpr int64_t kMaxTileKeys = 512;

// A word holds one f32 or a pair of bf16.
inline constexpr int64_t kWordBytes = 4;

enum class TileKind {
  kDirect,         // few rows, which read keys and values as they lie
  kDirectRounded,  // the same with numbers rounded to bf16
  kPanel,          // f32 microkernels on packed panels
  kPanelRounded,   // the same with numbers rounded to bf16
  kPanelBf16,      // microkernels of bf16 pairs
  kAmxBf16,        // blocks on AMX, of bf16
  kAmxBf16x3,      // blocks on AMX, of f32 as the sum of kBf16Terms bf16
};
inline constexpr size_t kNumTileKinds = 7;

// What a number is when it enters a product.
enum class Operand { kF32, kRoundedF32, kBf16, kBf16x3 };

struct TileTraits {
  // The kernel in ExecutionStats, and if the job also has direct tiles.
  std::string_view name;
  std::string_view name_with_direct;
  Operand operand;
  int64_t elements_per_word;
  int64_t terms;  // bf16 whose sum is one operand
  // The words of a query's or packed key's row are a multiple of this.
  int64_t row_words_step;
  // Rows and keys of a block that is multiplied at once; 0 if these are the
  // rows of a microkernel and the lanes of a vector.
  int64_t block;
  // The largest tile of entries with few rows, and with kManyRows or more. A
  // tile has enough rows to read K^T and V seldom, and few enough that their
  // scores stay in the second-level cache and that there are tiles for many
  // workers. AMX keeps the scores of one block only, and multiplies faster than
  // K^T and V arrive unless they are short.
  int64_t max_rows;
  int64_t max_rows_of_many;
  // Up to this many rows that see something, of the heads that share a kv head,
  // an entry is direct instead: packing would cost more than it saves. Native
  // bf16 products save more, but packing three terms costs more than that.
  int64_t max_direct_rows;
};
inline constexpr int64_t kManyRows = 1024;

// By TileKind.
inline constexpr TileTraits kTileTraits[kNumTileKinds] = {
    {"direct", "direct", Operand::kF32, 1, 1, 1, 0, 96, 96, 0},
    {"direct", "direct", Operand::kRoundedF32, 1, 1, 1, 0, 96, 96, 0},
    {"tiled", "tiled+direct", Operand::kF32, 1, 1, 1, 0, 96, 96, 48},
    {"tiled", "tiled+direct", Operand::kRoundedF32, 1, 1, 1, 0, 96, 96, 48},
    {"tiled", "tiled+direct", Operand::kBf16, 2, 1, 1, 0, 96, 96, 24},
    {"tiled", "tiled+direct", Operand::kBf16, 2, 1, kAmxSteps, kAmxBlock, 128,
     kMaxTileRows, 24},
    {"tiled_bf16x3", "tiled_bf16x3+direct", Operand::kBf16x3, 2, kBf16Terms,
     kAmxSteps, kAmxBlock, 128, kMaxTileRows, 96}};

constexpr const TileTraits& TraitsOf(TileKind kind) {
  return kTileTraits[static_cast<size_t>(kind)];
}

constexpr bool IsDirect(TileKind kind) {
  return kind == TileKind::kDirect || kind == TileKind::kDirectRounded;
}

// Whether the kind multiplies bf16 natively, which takes an instruction set
// that has such products.
constexpr bool IsNativeBf16(TileKind kind) {
  return TraitsOf(kind).elements_per_word > 1;
}

// The words of one term of a query's or packed key's row.
constexpr int64_t TermWords(TileKind kind, int64_t head_dim) {
  const TileTraits& traits = TraitsOf(kind);
  return RoundUp(CeilDiv(head_dim, traits.elements_per_word),
                 traits.row_words_step);
}
// The words of all terms.
constexpr int64_t RowWords(TileKind kind, int64_t head_dim) {
  return TraitsOf(kind).terms * TermWords(kind, head_dim);
}

// How the backward pass meets a tile of keys with a tile of rows.
enum class BackwardKind {
  kDirect,  // scores as direct tiles make them, the rest by f32 microkernels
  kPanel,   // all by f32 microkernels
  kBf16x3,  // on AMX, of f32 as the sum of kBf16Terms bf16
};
inline constexpr size_t kNumBackwardKinds = 3;

struct BackwardTraits {
  std::string_view name;  // the kernel in ExecutionStats
  int64_t tile_rows;
  // Tiles of keys that share the rows that pass by, of long sequences.
  int64_t key_tiles_of_long_run;
};

// By BackwardKind.
inline constexpr BackwardTraits kBackwardTraits[kNumBackwardKinds] = {
    {"backward", 96, 1}, {"backward", 96, 1}, {"backward_bf16x3", 128, 2}};

constexpr const BackwardTraits& TraitsOf(BackwardKind kind) {
  return kBackwardTraits[static_cast<size_t>(kind)];
}

}  // namespace attnd

#endif  // ATTND_CORE_TILE_KIND_H_
