// The kinds of tiles: the ways to multiply a tile, which is a few query rows,
// with the keys and values that they see. A plan chooses one kind for each
// batch entry. Whatever differs between kinds is a column of the tables below,
// or a kernel class of that kind.
#ifndef ATTND_CORE_TILE_KIND_H_
#define ATTND_CORE_TILE_KIND_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/checked_math.h"

namespace attnd {

// A tile register of AMX has this many rows of this many 4-byte words. One AMX
// instruction multiplies two such registers, so it also sums over this many
// steps of the dimension that both share. A step is one word, a pair of bf16.
inline constexpr int64_t kAmxSteps = 16;
inline constexpr int64_t kAmxTileWords = kAmxSteps * kAmxSteps;
// The number of rows and of columns of the block of results that AMX kernels
// compute at once, in 2 x 2 tile registers. It is also the number of bf16 in a
// row of a tile register, two in each word.
inline constexpr int64_t kAmxBlock = 2 * kAmxSteps;

// An f32 is exactly the sum of this many bf16 numbers, its terms, because
// together they hold its 24 significant bits. A product of f32 numbers that are
// split into three terms is called bf16x3.
inline constexpr int kBf16Terms = 3;

// The most query rows and the most keys of a tile. They limit how much stack
// memory a kernel takes.
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
  // The kernel's name that the answer to a call reports (ExecutionStats):
  // `name` if all tiles have this kind, `name_with_direct` if others are
  // direct.
  std::string_view name;
  std::string_view name_with_direct;
  Operand operand;
  int64_t elements_per_word;
  int64_t terms;  // how many bf16 are summed to one operand
  // The number of 4-byte words of a query row, or of a packed row of K, is a
  // multiple of this number.
  int64_t row_words_step;
  // The number of query rows, and of keys, of the block of scores that is
  // computed at once. 0 stands for the rows of a microkernel and the lanes of a
  // SIMD vector.
  int64_t block;
  // The most query rows of a tile: max_rows in batch entries with fewer than
  // kManyRows rows, max_rows_of_many in all others. Large tiles read K^T and V
  // less often. Small tiles keep their scores in the second-level cache, and
  // there are enough of them for many workers. AMX tiles may be larger, because
  // they keep the scores of only one block and multiply faster than a long K^T
  // and V come from memory.
  int64_t max_rows;
  int64_t max_rows_of_many;
  // A batch entry with at most this many query rows gets direct tiles instead,
  // because packing its keys would cost more than it saves. The rows of all
  // query heads that share a kv head are counted together, without those that
  // see no key. The number is smaller for native bf16 products, where packing
  // saves more, and larger for bf16x3, where packing costs more.
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

// Returns how many 4-byte words one term (see kBf16Terms) of a query row, or of
// a packed row of K, takes.
constexpr int64_t TermWords(TileKind kind, int64_t head_dim) {
  const TileTraits& traits = TraitsOf(kind);
  return RoundUp(CeilDiv(head_dim, traits.elements_per_word),
                 traits.row_words_step);
}
// Returns the number of words of all terms of such a row.
constexpr int64_t RowWords(TileKind kind, int64_t head_dim) {
  return TraitsOf(kind).terms * TermWords(kind, head_dim);
}

// How the backward pass multiplies a tile of keys with a tile of query rows.
enum class BackwardKind {
  kDirect,  // scores as in direct tiles, the rest by f32 microkernels
  kPanel,   // all by f32 microkernels
  kBf16x3,  // on AMX, of f32 as the sum of kBf16Terms bf16
};
inline constexpr size_t kNumBackwardKinds = 3;

struct BackwardTraits {
  std::string_view name;  // the kernel in ExecutionStats
  int64_t tile_rows;
  // How many consecutive tiles of keys one task processes together, as a key
  // run, if the sequence is long. Each tile of query rows is then read once for
  // the whole run, not once for each tile of keys.
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
