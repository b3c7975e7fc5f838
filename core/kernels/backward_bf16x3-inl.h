// Computes on AMX what one tile of query rows adds to dK and dV of a tile of
// keys, and what these keys add to the rows' dQ. Every f32 number is split into
// three bf16 terms (core/kernels/amx_bf16.cc). Only
// core/kernels/flash_backward.cc includes this.
//
// Maths. S (the scores) and dP are computed transposed, because in this form
// the next products can read them without a shuffle:
//   S^T = K Q^T      dP^T = V dO^T
//   dV = P^T dO      dK = dS^T Q       dQ^T = K^T dS^T
// A SIMD vector of P^T or dS^T belongs to one key and 16 query rows. Two
// vectors of the same key, 16 rows apart, give the words (pairs of bf16) of a
// left-hand side for dV and dK. Two vectors of keys that are 16 apart give the
// words of a right-hand side for dQ^T, which is also summed transposed. S has
// the same bits as in the forward pass. So if a single score makes up all of
// lse, P is exactly 1, however large both are. P and dS of a block of 32 rows x
// 32 keys stay in registers from the exponential until they are split into
// terms.
//
// Memory traffic of 128 rows x 128 keys. Each product of 32 x 32 numbers reads
// its operands as three terms, 6 bytes for each number; one of the two operands
// comes from the first-level cache. K, V and K^T are packed once for each job,
// Q and dO twice each. A packed tile of query rows takes 24 bytes for each pair
// of an element of Q and one of dO. In long sequences two tiles of keys read it
// while it is in the second-level cache.
//
// Edges. If a block of rows does not see all keys, or a soft cap, ALiBi or bias
// changes its scores, its S and dP are transposed, turned into P and dS row by
// row as in f32 tiles, and transposed back. A key or row that is not finite
// makes only its own entries of S and dP not finite, and these are set to 0
// where the row does not see the key. In the last three products, which sum
// over rows or keys, the packed copies have 0 in place of numbers that are not
// finite. If an entry is not finite although the row sees the key, or if
// numbers are so small that AMX treats their terms as 0, the f32 products
// compute both tiles instead.
#if defined(ATTND_CORE_KERNELS_BACKWARD_BF16X3_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_BACKWARD_BF16X3_INL_H_
#undef ATTND_CORE_KERNELS_BACKWARD_BF16X3_INL_H_
#else
#define ATTND_CORE_KERNELS_BACKWARD_BF16X3_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "base/checked_math.h"
#include "core/geometry.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/backward_rows-inl.h"
#include "core/kernels/convert-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Returns whether numbers whose largest magnitude is `largest`, given as the
// bits of a float, can be split into bf16 terms. They can if all are 0, or if
// the largest is so large that no term that matters beside it, and no product
// of two such terms, is denormal. AMX treats denormal numbers as 0.
inline bool IsSplittable(uint32_t largest) {
  constexpr float kMinScored = 0x1p-50F;
  return largest == 0 || largest >= std::bit_cast<uint32_t>(kMinScored);
}

// Calls `visit(column, vectors)` for every two SIMD vectors of columns, with
// the first column and 1 or 2 vectors.
template <class Visitor>
void VisitAmxColumns(int64_t dims, const Visitor& visit) {
  for (int64_t column = 0; column < RoundToLine(dims); column += kAmxBlock) {
    visit(column,
          std::min<int64_t>(2, (RoundToLine(dims) - column) / kAmxSteps));
  }
}

// Sets all terms of numbers that are not finite to 0. Each word holds terms of
// two numbers. `words` has `groups` groups, each with kBf16Terms terms of
// `tile_words` words, one after the other.
inline void ZeroNotFinite(int64_t groups, int64_t tile_words, float* words) {
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t i = 0; i < tile_words; i += kLanes) {
      float* const first = words + group * kBf16Terms * tile_words + i;
      const auto keep = FiniteHalves(hn::BitCast(kU, hn::Load(kF, first)));
      for (int64_t t = 0; t < kBf16Terms; ++t) {
        float* const word = first + t * tile_words;
        const auto bits = hn::BitCast(kU, hn::Load(kF, word));
        hn::Store(hn::BitCast(kF, hn::And(bits, keep)), kF, word);
      }
    }
  }
}

// Packs K and V of a tile of keys in the layout of PackedKeysBf16x3. If the
// tile has fewer than kTileKeys keys, fills the rest with zeros.
inline void PackKeysBf16x3(const BackwardJob& job,
                           const BackwardPlan::Tile& tile,
                           const BatchEntry& entry) {
  constexpr int64_t kTerms = kBf16Terms;
  const PackedKeysBf16x3 layout = PackedKeysBf16x3::Of(job.plan.shape());
  float* const to = job.packed_keys + job.plan.PackedKeysAt(tile, entry);
  const int64_t first = tile.tile * kTileKeys;
  const int64_t keys = std::clamp<int64_t>(entry.kv_len - first, 0, kTileKeys);
  const auto reader = [&](const KvSource& source) {
    return ReaderOf<AsF32>(source.Rows(entry, tile.kv_head, first));
  };
  const auto split_rows = [&](const KvSource& source, int64_t dims,
                              int64_t stride, float* rows) {
    const RowReader<AsF32> from = reader(source);
    Bits largest = hn::Zero(kU);
    for (int64_t j = 0; j < keys; ++j) {
      SplitRow<kTerms>(from.as, from.At(j, 0), dims, 2 * stride / kTerms, 1,
                       reinterpret_cast<uint16_t*>(rows + j * stride),
                       2 * stride / kTerms, largest);
    }
    std::fill(rows + keys * stride, rows + kTileKeys * stride, 0.0F);
    return LargestOf(largest);
  };
  const int64_t dims = job.params.head_dim;
  const uint32_t largest_key = split_rows(job.key, dims, layout.key_stride, to);
  const uint32_t largest_value =
      split_rows(job.value, job.params.v_head_dim, layout.value_stride,
                 to + layout.values);
  to[layout.largest] = std::bit_cast<float>(largest_key);
  to[layout.largest + 1] = std::bit_cast<float>(largest_value);

  // Packs K^T in the layout of packed values first, and then transposes each
  // AMX tile of it.
  constexpr int64_t kGroups = kTileKeys / kAmxBlock;
  HWY_ALIGN float tiles[kGroups * kTerms * 2 * kAmxTileWords];
  VisitAmxColumns(dims, [&](int64_t column, int64_t vectors) {
    std::fill(std::begin(tiles), std::end(tiles), 0.0F);
    if (keys > 0) {
      PackValueTiles<kTerms>(reader(job.key).From(0, column), keys,
                             std::min(kAmxBlock, dims - column), tiles);
    }
    if (largest_key >= kInfinityBits) {
      ZeroNotFinite(kGroups, vectors * kAmxTileWords, tiles);
    }
    for (int64_t group = 0; group < kGroups; ++group) {
      for (int64_t t = 0; t < kTerms; ++t) {
        for (int64_t v = 0; v < vectors; ++v) {
          TransposeTile(
              tiles + ((group * kTerms + t) * vectors + v) * kAmxTileWords,
              kAmxSteps,
              to + layout.columns +
                  (column + v * kAmxSteps) * layout.column_stride +
                  t * (kTileKeys / 2) + group * kAmxSteps,
              layout.column_stride);
        }
      }
    }
  });
}

// Packs Q and dO of a tile of query rows in the layout of PackedRowsBf16x3. If
// the tile has fewer than tile_q rows, fills the rest with zeros. Rows that see
// no key become 0, too, because they may hold any bytes.
inline void PackRowsBf16x3(const BackwardJob& job,
                           const BackwardPlan::Tile& tile,
                           const BatchEntry& entry, float* slot) {
  const SlotLayout::Shape& shape = job.plan.shape();
  const BackwardLayout& slot_layout = job.plan.slot_layout();
  const PackedRowsBf16x3 layout = PackedRowsBf16x3::Of(shape);
  float* const to = job.packed_rows + job.plan.PackedRowsAt(tile, entry);
  const auto pack = [&](const TensorView<const float>& tensor, int64_t dims,
                        float factor, float* rows, int64_t stride, float* tiles,
                        float* values) {
    VisitRows(job, tile, entry, [&](int64_t r, int64_t head, int64_t row) {
      float* const copy = rows + r * stride;
      if (*job.lse.Row(entry.batch, head, row) == kMinusInfinity ||
          entry.VisibleRange(row - entry.q_begin).size() == 0) {
        std::fill_n(copy, stride, 0.0F);
      } else {
        ConvertRow(AsF32(), tensor.Row(entry.batch, head, row), dims, stride,
                   factor, false, copy);
      }
    });
    const int64_t count = std::min(
        shape.tile_q, job.plan.RowsOf(entry) - tile.tile * shape.tile_q);
    Bits largest = hn::Zero(kU);
    for (int64_t r = 0; r < shape.tile_q; r += kPanelKeys) {
      largest = hn::Max(largest,
                        PackKeyTiles<kBf16Terms>(
                            RowReader<AsF32>{rows + r * stride, stride},
                            std::clamp<int64_t>(count - r, 0, kPanelKeys), dims,
                            tiles + r * RowWords(TileKind::kAmxBf16x3, dims)));
    }
    if (LargestOf(largest) >= kInfinityBits) {
      for (int64_t i = 0; i < count * stride; i += kLanes) {
        const Vec x = hn::Load(kF, rows + i);
        const auto finite = hn::Lt(hn::Abs(x), hn::Set(kF, kInfinity));
        hn::Store(hn::IfThenElseZero(finite, x), kF, rows + i);
      }
    }
    PackValueTiles<kBf16Terms>(RowReader<AsF32>{rows, stride}, count, dims,
                               values);
    return std::bit_cast<float>(LargestOf(largest));
  };
  to[layout.largest] =
      pack(job.query, job.params.head_dim, ScoreScale(job.params).query_factor,
           slot + slot_layout.query, slot_layout.q_stride,
           to + layout.query_tiles, to + layout.query_values);
  to[layout.largest + 1] = pack(
      job.grad_output, job.params.v_head_dim, 1, slot + slot_layout.grad_output,
      slot_layout.v_stride, to + layout.grad_tiles, to + layout.grad_values);
}

// The bf16x3 products of a tile of keys and a tile of query rows. Call
// AddToKeys first, and AddToRows once all earlier tiles of keys have been added
// to dQ of these rows.
class Bf16x3Pair : public TilePair {
 public:
  Bf16x3Pair(const BackwardJob& job, const BackwardPlan::Tile& key_tile,
             const BatchEntry& entry, int64_t row_tile, float* slot)
      : TilePair(job, key_tile, entry, row_tile, slot, kAmxBlock, kAmxBlock),
        shape_(job.plan.shape()),
        key_parts_(PackedKeysBf16x3::Of(shape_)),
        row_parts_(PackedRowsBf16x3::Of(shape_)),
        packed_keys_(job.packed_keys + job.plan.PackedKeysAt(key_tile, entry)),
        packed_rows_(job.packed_rows +
                     job.plan.PackedRowsAt(row_tile_, entry)) {
    if (seen()) MakeBands();
  }

  // Adds what this tile of query rows contributes to dK and dV of the keys.
  // Returns false and adds nothing if numbers cannot be split into bf16 terms;
  // f32 products (F32Pair) are needed then.
  bool AddToKeys() {
    if (!CanSplit()) return false;
    LoadRowNumbers();
    Bits largest = hn::Zero(kU);
    for (int64_t band = 0; band < kBands; ++band) {
      if (bands_[band].keys.size() == 0) continue;
      Multiply(band);
      largest = hn::Max(largest, bands_[band].fully_visible ? WeighVisible(band)
                                                            : WeighByRow(band));
    }
    if (LargestOf(largest) >= kInfinityBits) return false;
    for (int64_t key = 0; key < shape_.tile_kv; key += kAmxBlock) {
      AddToKeysFrom(key);
    }
    return true;
  }

  // Computes dQ^T += K^T dS^T. Needs dS, which AddToKeys has left in the slot.
  void AddToRows() const {
    const int64_t dims = RoundToLine(params_.head_dim);
    float* const to = RowGrads();
    for (int64_t band = 0; band < kBands; ++band) {
      const KeyRange keys = bands_[band].keys;
      if (keys.size() == 0) continue;
      for (int64_t d = 0; d < dims; d += kAmxBlock) {
        AmxAddValues<kBf16Terms>(
            std::min(kAmxBlock, dims - d), 2,
            {.first = packed_keys_ + key_parts_.columns +
                      d * key_parts_.column_stride,
             .stride = key_parts_.column_stride,
             .term_words = shape_.tile_kv / 2},
            GradTiles(band), 0, keys.begin / 2, keys.end / 2, false,
            to + d * shape_.tile_q + band * kAmxBlock, shape_.tile_q);
      }
    }
  }

 private:
  static constexpr int64_t kMaxRows = 128;
  static constexpr int64_t kBands = kMaxRows / kAmxBlock;

  // kAmxBlock consecutive query rows of the tile.
  struct Band {
    // The keys that any row sees, extended to multiples of kAmxBlock. They
    // count from the tile's first key.
    KeyRange keys;
    // Whether all rows see all of `keys`, and no bias or other option changes
    // the scores.
    bool fully_visible = true;
  };

  // P and dS of one key and the kAmxBlock query rows of a band.
  struct KeyWeights {
    // An implicit constructor would not be compiled for the target, so it could
    // not construct vectors of NEON.
    HWY_INLINE KeyWeights() {}  // NOLINT(modernize-use-equals-default)
    Vec weight[2];
    Vec grad[2];
  };

  void MakeBands() {
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      const int64_t last = (block.first + block.rows - 1) / kAmxBlock;
      for (int64_t i = block.first / kAmxBlock; i <= last; ++i) {
        Band& band = bands_[i];
        band.fully_visible &= block.fully_visible && block.seen.size() > 0;
        if (block.seen.size() == 0) continue;
        const KeyRange keys = {
            (block.seen.begin - begin_) / kAmxBlock * kAmxBlock,
            RoundUp(block.seen.end - begin_, kAmxBlock)};
        band.fully_visible &= band.keys.size() == 0 || band.keys == keys;
        band.keys = Union(band.keys, keys);
      }
    }
  }

  bool CanSplit() const {
    const auto bits = [](const float* x) {
      return std::bit_cast<uint32_t>(*x);
    };
    const float* const of_keys = packed_keys_ + key_parts_.largest;
    const float* const of_rows = packed_rows_ + row_parts_.largest;
    // An estimate of the largest magnitude of dS, for P = 1.
    const float grad_score =
        of_rows[1] * of_keys[1] * ScoreScale(params_).magnitude;
    return IsSplittable(bits(of_rows)) && IsSplittable(bits(of_rows + 1)) &&
           IsSplittable(bits(of_keys)) && IsSplittable(bits(of_keys + 1)) &&
           IsSplittable(std::bit_cast<uint32_t>(grad_score));
  }

  // Loads lse and D of the rows. A row that sees no key gets an lse of +inf
  // instead of -inf, so that its weights are exp(s - inf) = 0.
  void LoadRowNumbers() {
    const int64_t first_row = job_.plan.FirstRow(row_tile_, entry_);
    std::fill_n(lse_, kMaxRows, kInfinity);
    std::fill_n(delta_, kMaxRows, 0.0F);
    VisitRows(job_, row_tile_, entry_,
              [&](int64_t r, int64_t head, int64_t row) {
                const float lse = *job_.lse.Row(entry_.batch, head, row);
                if (lse == kMinusInfinity) return;
                lse_[r] = lse;
                delta_[r] = job_.deltas[first_row + r];
              });
  }

  // Computes S^T and dP^T for the kAmxBlock query rows of a band.
  void Multiply(int64_t band) const {
    const auto multiply = [&](const float* left, int64_t left_stride,
                              const float* right, int64_t dims,
                              float* products) {
      const int64_t steps = TermWords(TileKind::kAmxBf16x3, dims);
      const KeyRange keys = bands_[band].keys;
      for (int64_t key = keys.begin; key < keys.end; key += kAmxBlock) {
        AmxScoresTransposed(kAmxBlock, 2,
                            {.first = left + key * left_stride,
                             .stride = left_stride,
                             .term_words = steps},
                            right + band * kAmxBlock * steps * kBf16Terms,
                            steps, products + key * kAmxBlock, kAmxBlock);
      }
    };
    multiply(packed_keys_ + key_parts_.keys, key_parts_.key_stride,
             packed_rows_ + row_parts_.query_tiles, params_.head_dim,
             slot_ + layout_.scores);
    multiply(packed_keys_ + key_parts_.values, key_parts_.value_stride,
             packed_rows_ + row_parts_.grad_tiles, params_.v_head_dim,
             slot_ + layout_.grads);
  }

  // Computes P^T and dS^T from S^T and dP^T and stores their bf16 terms.
  // Returns the largest magnitude of dS in each lane.
  Bits WeighVisible(int64_t band) const {
    const Vec slope = hn::Set(kF, ScoreScale(params_).magnitude);
    Vec lse[2];
    Vec delta[2];
    for (int64_t v = 0; v < 2; ++v) {
      lse[v] = hn::Load(kF, lse_ + band * kAmxBlock + v * kAmxSteps);
      delta[v] = hn::Load(kF, delta_ + band * kAmxBlock + v * kAmxSteps);
    }
    return StoreTerms(band, [&](int64_t key) HWY_ATTR {
      KeyWeights of;
      ATTND_UNROLL
      for (int64_t v = 0; v < 2; ++v) {
        const int64_t at = key * kAmxBlock + v * kAmxSteps;
        const Vec s = hn::Mul(hn::Load(kF, slot_ + layout_.scores + at), slope);
        WeighPairs<true>(s, hn::Load(kF, slot_ + layout_.grads + at), slope,
                         lse[v], delta[v], of.weight[v], of.grad[v]);
      }
      return of;
    });
  }

  // Does what WeighVisible does, but row by row, for bands that are not fully
  // visible.
  Bits WeighByRow(int64_t band) const {
    const KeyRange keys = bands_[band].keys;
    const auto transpose = [&](int64_t columns, int64_t by_row, bool back) {
      for (int64_t key = keys.begin; key < keys.end; key += kAmxSteps) {
        for (int64_t r = 0; r < kAmxBlock; r += kAmxSteps) {
          float* const column = slot_ + columns + key * kAmxBlock + r;
          float* const row = slot_ + by_row + r * layout_.score_stride + key;
          if (back) {
            TransposeTile(row, layout_.score_stride, column, kAmxBlock);
          } else {
            TransposeTile(column, kAmxBlock, row, layout_.score_stride);
          }
        }
      }
    };
    transpose(layout_.scores, layout_.score_rows, false);
    transpose(layout_.grads, layout_.grad_rows, false);
    const int64_t first = band * kAmxBlock;
    for (int64_t r = first; r < first + kAmxBlock; ++r) {
      const int64_t at = (r - first) * layout_.score_stride;
      float* const scores = slot_ + layout_.score_rows + at;
      float* const grads = slot_ + layout_.grad_rows + at;
      if (r >= rows_.rows()) {
        std::fill_n(scores, shape_.tile_kv, 0.0F);
        std::fill_n(grads, shape_.tile_kv, 0.0F);
        continue;
      }
      WeighRow<true>(rows_, BlockOf(r), r, params_.bias_dtype, begin_,
                     end_ - begin_, shape_.tile_kv, lse_[r], delta_[r], scores,
                     grads);
    }
    transpose(layout_.scores, layout_.score_rows, true);
    transpose(layout_.grads, layout_.grad_rows, true);
    return StoreTerms(band, [&](int64_t key) HWY_ATTR {
      KeyWeights of;
      ATTND_UNROLL
      for (int64_t v = 0; v < 2; ++v) {
        const int64_t at = key * kAmxBlock + v * kAmxSteps;
        of.weight[v] = hn::Load(kF, slot_ + layout_.scores + at);
        of.grad[v] = hn::Load(kF, slot_ + layout_.grads + at);
      }
      return of;
    });
  }

  // Splits P^T and dS^T of the kAmxBlock query rows of a band into bf16 terms,
  // and stores these in the form of operands of the next products.
  // `weights(key)` returns P and dS of a key.
  template <class Weights>
  Bits StoreTerms(int64_t band, const Weights& weights) const {
    constexpr int kTerms = kBf16Terms;
    using Terms = Bf16Terms<kTerms, Floats>;
    const KeyRange keys = bands_[band].keys;
    Bits largest = hn::Zero(kU);
    float* to = GradTiles(band) + keys.begin / 2 * kAmxBlock * kTerms;
    for (int64_t key = keys.begin; key < keys.end; key += kAmxBlock) {
      for (int64_t i = 0; i < kAmxSteps; ++i) {
        const int64_t pair[2] = {key + i, key + i + kAmxSteps};
        const KeyWeights of[2] = {weights(pair[0]), weights(pair[1])};
        ATTND_UNROLL
        for (int k = 0; k < 2; ++k) {
          const Terms first(kF, of[k].weight[0]);
          const Terms second(kF, of[k].weight[1]);
          ATTND_UNROLL
          for (int t = 0; t < kTerms; ++t) {
            hn::Store(UpperHalves(kF, first.term[t], second.term[t]), kF,
                      WeightTerms(pair[k]) + t * layout_.term_stride +
                          band * kAmxSteps);
          }
          largest = hn::Max(largest, hn::Max(Magnitude(of[k].grad[0]),
                                             Magnitude(of[k].grad[1])));
        }
        const Terms grads[2][2] = {
            {Terms(kF, of[0].grad[0]), Terms(kF, of[0].grad[1])},
            {Terms(kF, of[1].grad[0]), Terms(kF, of[1].grad[1])}};
        ATTND_UNROLL
        for (int t = 0; t < kTerms; ++t) {
          ATTND_UNROLL
          for (int k = 0; k < 2; ++k) {
            hn::Store(UpperHalves(kF, grads[k][0].term[t], grads[k][1].term[t]),
                      kF,
                      GradTerms(pair[k]) + t * layout_.term_stride +
                          band * kAmxSteps);
            hn::Store(UpperHalves(kF, grads[0][k].term[t], grads[1][k].term[t]),
                      kF, to + (2 * t + k) * kAmxTileWords + i * kLanes);
          }
        }
      }
      to += 2 * kTerms * kAmxTileWords;
    }
    return largest;
  }

  // Computes dV += P^T dO and dK += dS^T Q for kAmxBlock keys from `key` on.
  void AddToKeysFrom(int64_t key) const {
    const auto sees = [&](int64_t band) {
      return bands_[band].keys.begin <= key && key < bands_[band].keys.end;
    };
    int64_t first = 0;
    int64_t last = kBands;
    while (first < last && !sees(first)) ++first;
    while (last > first && !sees(last - 1)) --last;
    for (int64_t band = first; band < last; ++band) {
      if (!sees(band)) ClearTerms(key, band);
    }
    const auto add = [&](const float* left, const float* right, int64_t dims,
                         float* output) {
      const int64_t stride = RoundToLine(dims);
      VisitAmxColumns(dims, [&](int64_t column, int64_t vectors) {
        AmxAddValues<kBf16Terms>(
            kAmxBlock, vectors,
            {.first = left,
             .stride = layout_.terms_stride,
             .term_words = layout_.term_stride},
            right + column * (kKeysPerSum / 2) * kBf16Terms, 0,
            first * kAmxSteps, last * kAmxSteps, false,
            output + key * stride + column, stride);
      });
    };
    if (first == last) return;
    add(WeightTerms(key), packed_rows_ + row_parts_.grad_values,
        params_.v_head_dim, grads_ + layout_.grad_value);
    add(GradTerms(key), packed_rows_ + row_parts_.query_values,
        params_.head_dim, grads_ + layout_.grad_key);
  }

  void ClearTerms(int64_t key, int64_t band) const {
    for (int64_t j = key; j < key + kAmxBlock; ++j) {
      for (int64_t t = 0; t < kBf16Terms; ++t) {
        const int64_t at = t * layout_.term_stride + band * kAmxSteps;
        std::fill_n(WeightTerms(j) + at, kAmxSteps, 0.0F);
        std::fill_n(GradTerms(j) + at, kAmxSteps, 0.0F);
      }
    }
  }

  float* WeightTerms(int64_t key) const {
    return slot_ + layout_.weight_terms + key * layout_.terms_stride;
  }
  float* GradTerms(int64_t key) const {
    return slot_ + layout_.grad_terms + key * layout_.terms_stride;
  }
  float* GradTiles(int64_t band) const {
    return slot_ + layout_.grad_tiles + band * layout_.grad_block_words;
  }

  const SlotLayout::Shape& shape_;
  const PackedKeysBf16x3 key_parts_;
  const PackedRowsBf16x3 row_parts_;
  const float* const packed_keys_;
  const float* const packed_rows_;
  Band bands_[kBands];
  HWY_ALIGN float lse_[kMaxRows];
  HWY_ALIGN float delta_[kMaxRows];
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
