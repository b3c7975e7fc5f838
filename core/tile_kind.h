// The kinds of tiles: the ways to multiply a tile of query rows with its keys
// and values. A plan chooses the kind of every batch entry once. Whatever
// differs between kinds is a column of the tables below, or a kernel class of
// that kind.
#ifndef ATTND_CORE_TILE_KIND_H_
#define ATTND_CORE_TILE_KIND_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/checked_math.h"

namespace attnd {

// The number of steps that one AMX instruction multiplies. It is also the
// number of rows of a tile register, and the number of words in each row.
inline constexpr int64_t kAmxSteps = 16;
inline constexpr int64_t kAmxTileWords = kAmxSteps * kAmxSteps;
// The number of rows and of columns of a block, which has 2 x 2 result tiles.
// It is also the number of bf16 in a row of a tile register, which holds
// dimensions or keys in pairs.
inline constexpr int64_t kAmxBlock = 2 * kAmxSteps;

// An f32 is exactly the sum of this many bf16, the terms, because together they
// hold its 24 bits. Products of three terms are called bf16x3.
inline constexpr int kBf16Terms = 3;

// The largest tile. It limits how much of the stack a tile takes.
inline constexpr int64_t kMaxTileRows = 256;
inline constexpr int64_t kMaxTileKeys = 512;

// A word holds one f32 or a pair of bf16.
inline constexpr int64_t kWordBytes = 4;

// How a tile multiplies queries with keys, and weights with values.
enum class TileKind {
  kDirect,         // for few rows, which read keys and values in place
  kDirectRounded,  // the same with numbers rounded to bf16
  kPanel,          // f32 microkernels on packed panels
  kPanelRounded,   // the same with numbers rounded to bf16
  kPanelBf16,      // microkernels of bf16 pairs
  kAmxBf16,        // blocks on AMX, of bf16
  kAmxBf16x3,      // blocks on AMX, of f32 as the sum of kBf16Terms bf16
};
inline constexpr size_t kNumTileKinds = 7;

// The form of the numbers that a product multiplies.
enum class Operand { kF32, kRoundedF32, kBf16, kBf16x3 };

struct TileTraits {
  // The kernel's name in ExecutionStats: alone, and if the job also has direct
  // tiles.
  std::string_view name;
  std::string_view name_with_direct;
  Operand operand;
  int64_t elements_per_word;
  int64_t terms;  // how many bf16 are summed to one operand
  // The number of words in the row of a query or packed key is a multiple of
  // this.
  int64_t row_words_step;
  // The number of rows and of keys of a block that is multiplied at once. 0 if
  // a block has the rows of a microkernel and the lanes of a vector.
  int64_t block;
  // The most rows of a tile, in entries with fewer rows than kManyRows, and in
  // others. A tile should have many rows, so that K^T and V are read seldom. It
  // should have few rows, so that their scores stay in the second-level cache
  // and there are tiles for many workers. AMX keeps the scores of one block
  // only, and multiplies faster than K^T and V arrive unless they are short, so
  // its tiles may be larger.
  int64_t max_rows;
  int64_t max_rows_of_many;
  // An entry is direct instead if it has at most this many rows, because
  // packing would cost more than it saves. Of the rows of all heads that share
  // a kv head, only those that see a key count. The number is smaller for
  // native bf16 products, which save more, and larger for three terms, which
  // cost more to pack.
  int64_t max_direct_rows;
};
inline constexpr int64_t kManyRows = 1024;

// The traits of every kind, in the order of TileKind.
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

// Returns whether the kind multiplies bf16 natively. Only some instruction sets
// have such products.
constexpr bool IsNativeBf16(TileKind kind) {
  return TraitsOf(kind).elements_per_word > 1;
}

// Returns the number of words of one term of the row of a query or packed key.
constexpr int64_t TermWords(TileKind kind, int64_t head_dim) {
  const TileTraits& traits = TraitsOf(kind);
  return RoundUp(CeilDiv(head_dim, traits.elements_per_word),
                 traits.row_words_step);
}
// Returns the number of words of all terms of such a row.
constexpr int64_t RowWords(TileKind kind, int64_t head_dim) {
  return TraitsOf(kind).terms * TermWords(kind, head_dim);
}

// How the backward pass multiplies a tile of keys with a tile of rows.
enum class BackwardKind {
  kDirect,  // scores as in direct tiles, the rest by f32 microkernels
  kPanel,   // all by f32 microkernels
  kBf16x3,  // on AMX, of f32 as the sum of kBf16Terms bf16
};
inline constexpr size_t kNumBackwardKinds = 3;

struct BackwardTraits {
  std::string_view name;  // the kernel in ExecutionStats
  int64_t tile_rows;
  // How many tiles of keys a run has if the sequence is long. They read each
  // tile of rows together.
  int64_t key_tiles_of_long_run;
};

// The traits of every kind, in the order of BackwardKind.
inline constexpr BackwardTraits kBackwardTraits[kNumBackwardKinds] = {
    {"backward", 96, 1}, {"backward", 96, 1}, {"backward_bf16x3", 128, 2}};

constexpr const BackwardTraits& TraitsOf(BackwardKind kind) {
  return kBackwardTraits[static_cast<size_t>(kind)];
}

}  // namespace attnd

#endif  // ATTND_CORE_TILE_KIND_H_
