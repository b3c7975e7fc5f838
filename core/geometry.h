// The sizes that plans and kernels share: how many rows and keys a block of
// scores has, and where the parts of a tile's working memory begin.
#ifndef ATTND_CORE_GEOMETRY_H_
#define ATTND_CORE_GEOMETRY_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "base/checked_math.h"
#include "core/isa.h"

namespace attnd {

// The largest number of query rows in a block of any kind.
inline constexpr int64_t kMaxBlockRows = kAmxBlock;

// A block is the rows of a tile that a kernel multiplies together. RowsOfBlock
// returns its largest number of query rows. A block takes the faster path,
// which hides no scores, only if all its rows see the same keys and their
// number is a multiple of KeysOfBlock.
constexpr int64_t RowsOfBlock(TileKind kind, const Geometry& geometry) {
  return TraitsOf(kind).block > 0 ? TraitsOf(kind).block : geometry.rows;
}
constexpr int64_t KeysOfBlock(TileKind kind, const Geometry& geometry) {
  return TraitsOf(kind).block > 0 ? TraitsOf(kind).block : geometry.lanes;
}

// The number of keys whose weighted values are summed before that sum is added
// to the output. Rounding errors grow with the length of a sum, so several
// short sums are more exact than one long sum. With 128, the error on a layer
// of a real model (tests/data) is below that of other f32 kernels, and the
// packed values of 128 keys stay in the first-level cache for all rows of a
// tile.
inline constexpr int64_t kKeysPerSum = 128;

// The number of 4-byte words in a cache line.
inline constexpr int64_t kLineWords = 16;

constexpr int64_t RoundToLine(int64_t words) {
  return RoundUp(words, kLineWords);
}

// Gives out consecutive pieces of memory, from word `begin` on. Every piece
// starts on a cache line. Words have 4 bytes.
class CacheLineLayout {
 public:
  explicit constexpr CacheLineLayout(int64_t begin) : at_(begin) {}

  // Adds a piece of `words` words. Returns the word at which it begins.
  constexpr int64_t Add(int64_t words) {
    return std::exchange(at_, at_ + RoundToLine(words));
  }
  // Returns where the next piece would begin.
  constexpr int64_t at() const { return at_; }

 private:
  int64_t at_;
};

// Where the parts of a slot begin. A slot is the working memory of one tile of
// the forward pass while it is being computed. Offsets and strides count words
// of 4 bytes. The first cache line is a header that says how far the tile has
// come.
struct SlotLayout {
  struct Shape {
    int64_t tile_q, tile_kv, head_dim, v_head_dim;
    bool converts_values;  // a tile of V is copied to the slot
    TileKind kind;         // of the tiles that are not direct
  };

  int64_t q_stride;
  // The distance between rows of scores is one cache line larger than a row, so
  // that different rows do not fall into the same sets of the cache. Weights
  // (the softmax of the scores) overwrite the scores. If the kind splits a
  // weight into several bf16 terms, the first term overwrites the score and the
  // others follow, `term_words` apart. Rows are then terms_stride apart, and
  // the slot holds the scores of only one block.
  int64_t score_stride;
  int64_t terms_stride;
  int64_t term_words;
  int64_t output_stride;  // v_head_dim in whole lines
  int64_t visible_stride;
  int64_t query;          // [tile_q, q_stride]
  int64_t scores;         // [tile_q, score_stride]
  int64_t output;         // [tile_q, output_stride]
  int64_t row_max_lanes;  // [tile_q, lanes]
  int64_t max;            // [tile_q]
  int64_t sum_lanes;      // [tile_q, lanes]
  int64_t visible;        // [tile_q, visible_stride]: a bit for each key
  int64_t values;         // [tile_kv, output_stride], or nothing
  int64_t total;

  static constexpr SlotLayout Of(const Geometry& geometry, const Shape& shape) {
    SlotLayout layout{};
    const int64_t terms = TraitsOf(shape.kind).terms;
    layout.q_stride = std::max(RoundToLine(shape.head_dim),
                               RowWords(shape.kind, shape.head_dim));
    layout.term_words = shape.tile_kv;
    layout.score_stride = shape.tile_kv + 16;
    layout.terms_stride = (2 * terms - 1) * shape.tile_kv / 2 + 16;
    layout.output_stride = RoundToLine(shape.v_head_dim);
    // The visibility bits of one SIMD vector of keys take two bytes, whatever
    // the width of the vector. They are read eight bytes at a time, so there is
    // spare space after the last.
    layout.visible_stride = RoundToLine(shape.tile_kv / geometry.lanes / 2 + 2);
    CacheLineLayout slot(kLineWords);
    layout.query = slot.Add(shape.tile_q * layout.q_stride);
    layout.scores = slot.Add(
        std::max(shape.tile_q * layout.score_stride,
                 terms > 1 ? kMaxBlockRows * layout.terms_stride : int64_t{0}));
    layout.output = slot.Add(shape.tile_q * layout.output_stride);
    layout.row_max_lanes = slot.Add(shape.tile_q * geometry.lanes);
    layout.max = slot.Add(shape.tile_q);
    layout.sum_lanes = slot.Add(shape.tile_q * geometry.lanes);
    layout.visible = slot.Add(shape.tile_q * layout.visible_stride);
    layout.values = slot.Add(
        shape.converts_values ? shape.tile_kv * layout.output_stride : 0);
    layout.total = slot.at();
    return layout;
  }
};

// These read and write the header at the start of a slot. The forward and the
// backward pass each have their own type of header.
template <class Header>
Header LoadHeader(const float* slot) {
  Header header;
  std::memcpy(&header, slot, sizeof(header));
  return header;
}
template <class Header>
void StoreHeader(float* slot, const Header& header) {
  static_assert(sizeof(header) <= kLineWords * kWordBytes);
  std::memcpy(slot, &header, sizeof(header));
}

// Where the parts of a slot of the backward pass begin, in words of 4 bytes.
// Such a slot is the working memory of one key run (consecutive tiles of keys
// that one task processes). The parts for f32 products and those for bf16x3
// products lie in the same memory, because a tile of keys and a tile of query
// rows are multiplied in only one of these ways.
struct BackwardLayout {
  int64_t visible_stride;
  int64_t visible;  // [tile_q, visible_stride]
  // The gradients of K and V for the first of the run's `key_tiles` tiles of
  // keys. Those for the next tile begin grad_words later, and so on.
  int64_t grad_key;    // [tile_kv, head_dim in whole lines]
  int64_t grad_value;  // [tile_kv, v_head_dim in whole lines]
  int64_t grad_words;

  // Parts for f32 products. The distance between rows is one cache line larger
  // than a row, so that different rows do not fall into the same sets of the
  // cache.
  int64_t q_stride;
  int64_t v_stride;
  int64_t score_stride;
  int64_t query;        // [tile_q, q_stride]
  int64_t grad_output;  // [tile_q, v_stride]
  int64_t query_chunk;  // query and grad_output in the form of right-hand sides
  int64_t grad_chunk;
  int64_t weights;        // [tile_q, score_stride]
  int64_t grad_scores;    // [tile_q, score_stride]
  int64_t row_max_lanes;  // [tile_q, lanes], written but never read
  // A tile of keys packed as PackedKeys says. Used where f32 products must
  // replace bf16x3 products, because the copy that all tasks share is packed
  // for bf16x3.
  int64_t packed;

  // Parts for bf16x3 products. Scores are transposed, so each row is a key.
  int64_t scores;  // [tile_kv, kAmxBlock], of one block of rows
  int64_t grads;   // the same of dP
  // [kAmxBlock, score_stride]: the scores and dP with one row for each query
  // row, for blocks whose weights are computed row by row.
  int64_t score_rows;
  int64_t grad_rows;
  int64_t term_stride;  // from one term of a row of weights to the next
  int64_t terms_stride;
  int64_t weight_terms;  // [tile_kv, terms_stride], left-hand sides
  int64_t grad_terms;    // the same of dS
  // grad_tiles is where dS begins in the form of right-hand sides. Each block
  // of query rows takes grad_block_words.
  int64_t grad_block_words;
  int64_t grad_tiles;
  int64_t total;

  static constexpr BackwardLayout Of(const Geometry& geometry,
                                     const SlotLayout::Shape& shape,
                                     int64_t key_tiles);
};

// Where the parts of a packed copy of one tile of K and V begin, in words of 4
// bytes. The copy is in the form that f32 products of the backward pass read.
struct PackedKeys {
  int64_t key_panels;    // K^T
  int64_t value_panels;  // V^T
  int64_t key_chunk;     // K
  int64_t total;

  static constexpr PackedKeys Of(const SlotLayout::Shape& shape) {
    PackedKeys layout{};
    layout.value_panels = shape.tile_kv * shape.head_dim;
    layout.key_chunk = layout.value_panels + shape.tile_kv * shape.v_head_dim;
    layout.total =
        layout.key_chunk + shape.tile_kv * RoundToLine(shape.head_dim);
    return layout;
  }
};

// Where the parts of a packed copy of one tile of K and V for bf16x3 products
// begin. Offsets and strides count words of 4 bytes. K, V and K^T have the form
// of left-hand sides, which core/kernels/amx_bf16.h describes: the three bf16
// terms of each row follow one another.
struct PackedKeysBf16x3 {
  int64_t key_stride;  // from row to row
  int64_t value_stride;
  int64_t column_stride;
  int64_t keys;     // [tile_kv, key_stride]
  int64_t values;   // [tile_kv, value_stride]
  int64_t columns;  // K^T: [head_dim in whole lines, column_stride]
  int64_t largest;  // the largest magnitudes of K and V, as in HeadPacking
  int64_t total;

  static constexpr PackedKeysBf16x3 Of(const SlotLayout::Shape& shape) {
    PackedKeysBf16x3 layout{};
    layout.key_stride = RowWords(TileKind::kAmxBf16x3, shape.head_dim);
    layout.value_stride = RowWords(TileKind::kAmxBf16x3, shape.v_head_dim);
    layout.column_stride = kBf16Terms * shape.tile_kv / 2;
    layout.values = shape.tile_kv * layout.key_stride;
    layout.columns = layout.values + shape.tile_kv * layout.value_stride;
    layout.largest =
        layout.columns + RoundToLine(shape.head_dim) * layout.column_stride;
    layout.total = layout.largest + RoundToLine(2);
    return layout;
  }
};

// Where the parts of a packed copy of one tile of query rows for bf16x3
// products begin, in words of 4 bytes. Q and dO (the gradient of the output)
// have the form of right-hand sides. Each is packed twice: as the forward pass
// packs keys, for products with K and V, and as it packs values, for products
// with weights and dS.
struct PackedRowsBf16x3 {
  int64_t query_tiles;
  int64_t grad_tiles;
  int64_t query_values;
  int64_t grad_values;
  int64_t largest;  // the largest magnitudes of Q and dO
  int64_t total;

  static constexpr PackedRowsBf16x3 Of(const SlotLayout::Shape& shape) {
    const int64_t values = kBf16Terms * shape.tile_q / 2;
    PackedRowsBf16x3 layout{};
    layout.grad_tiles =
        shape.tile_q * RowWords(TileKind::kAmxBf16x3, shape.head_dim);
    layout.query_values =
        layout.grad_tiles +
        shape.tile_q * RowWords(TileKind::kAmxBf16x3, shape.v_head_dim);
    layout.grad_values =
        layout.query_values + values * RoundToLine(shape.head_dim);
    layout.largest =
        layout.grad_values + values * RoundToLine(shape.v_head_dim);
    layout.total = layout.largest + RoundToLine(2);
    return layout;
  }
};

constexpr BackwardLayout BackwardLayout::Of(const Geometry& geometry,
                                            const SlotLayout::Shape& shape,
                                            int64_t key_tiles) {
  BackwardLayout layout{};
  const int64_t head = RoundToLine(shape.head_dim);
  const int64_t v_head = RoundToLine(shape.v_head_dim);
  layout.q_stride = head + 16;
  layout.v_stride = v_head + 16;
  layout.score_stride = shape.tile_kv + 16;
  layout.visible_stride = RoundToLine(shape.tile_kv / geometry.lanes / 2 + 2);
  const bool bf16x3 = shape.kind == TileKind::kAmxBf16x3;
  layout.term_stride = shape.tile_q / 2;
  layout.terms_stride = kBf16Terms * layout.term_stride + 16;
  layout.grad_block_words = kBf16Terms * shape.tile_kv / 2 * kAmxBlock;
  CacheLineLayout slot(kLineWords);
  layout.visible = slot.Add(shape.tile_q * layout.visible_stride);
  layout.grad_words = shape.tile_kv * (head + v_head);
  layout.grad_key = slot.Add(key_tiles * layout.grad_words);
  layout.grad_value = layout.grad_key + shape.tile_kv * head;
  CacheLineLayout shared(slot.at());
  layout.query = slot.Add(shape.tile_q * layout.q_stride);
  layout.grad_output = slot.Add(shape.tile_q * layout.v_stride);
  layout.query_chunk = slot.Add(kKeysPerSum * head);
  layout.grad_chunk = slot.Add(kKeysPerSum * v_head);
  layout.weights = slot.Add(shape.tile_q * layout.score_stride);
  layout.grad_scores = slot.Add(shape.tile_q * layout.score_stride);
  layout.row_max_lanes = slot.Add(shape.tile_q * geometry.lanes);
  layout.packed = slot.Add(bf16x3 ? PackedKeys::Of(shape).total : 0);
  layout.total = slot.at();
  if (!bf16x3) return layout;
  layout.scores = shared.Add(shape.tile_kv * kAmxBlock);
  layout.grads = shared.Add(shape.tile_kv * kAmxBlock);
  layout.score_rows = shared.Add(kAmxBlock * layout.score_stride);
  layout.grad_rows = shared.Add(kAmxBlock * layout.score_stride);
  layout.weight_terms = shared.Add(shape.tile_kv * layout.terms_stride);
  layout.grad_terms = shared.Add(shape.tile_kv * layout.terms_stride);
  layout.grad_tiles =
      shared.Add(shape.tile_q / kAmxBlock * layout.grad_block_words);
  layout.total = std::max(layout.total, shared.at());
  return layout;
}

// How far the packing of K and V of one kv head has come. All tiles of that kv
// head share this, so tasks access the members as atomics.
struct HeadPacking {
  uint32_t place;    // 1 + the number of its place in memory; 0 = none yet
  uint32_t claimed;  // pieces that a task packs or has packed
  uint32_t packed;   // pieces that are ready
  uint32_t done;     // tiles that no longer need the head
  // Used only if numbers are split into bf16 terms. largest_key is the largest
  // magnitude in K, as the bits of a float without its sign.
  // unsplittable_values is 1 if V has a number that cannot be split exactly,
  // and otherwise 0.
  uint32_t largest_key;
  uint32_t unsplittable_values;
};

// Where the parts of a partial result lie in memory, until the splits of a tile
// (each has some of its keys) are merged. First come the unnormalised output
// rows, then the largest score of each row, then the sum of each row's weights.
// Offsets count floats.
struct PartialLayout {
  int64_t output_stride;
  int64_t max;
  int64_t sum;
  int64_t total;

  static constexpr PartialLayout Of(int64_t tile_q, int64_t v_head_dim) {
    const int64_t stride = RoundToLine(v_head_dim);
    const int64_t rows = RoundToLine(tile_q);
    return {.output_stride = stride,
            .max = tile_q * stride,
            .sum = tile_q * stride + rows,
            .total = tile_q * stride + 2 * rows};
  }
};

}  // namespace attnd

#endif  // ATTND_CORE_GEOMETRY_H_
