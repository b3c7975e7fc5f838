// Tiled flash attention (Dao et al. 2022; online softmax after Milakov and
// Gimelshein 2018), for one tile of query rows over the keys that they see.
//
// Maths. With c = |scale| * log2(e),
//   s = dot(q, k)          m = max s so far            p = 2^((s - m) * c)
//   l = sum p              o = sum p * v               output = o / l
// and o and l shrink by 2^((m_old - m_new) * c) when the maximum grows. The
// difference comes first, so that scores of any size keep the weights of those
// near the maximum. A negative scale flips the sign of q, which is exact, so
// that c >= 0 and the largest s has the largest weight. Where scores are more
// than scaled dot products (soft cap, ALiBi, bias), s is the final score and
// c = log2(e).
//
// Three ways to the same tile:
//   tiled, f32    K^T is packed into panels once a job; 6 x 4-vector
//                 microkernels (core/kernels/microkernels-inl.h)
//   tiled, bf16   the same with pairs of bf16 (core/kernels/bf16_dot.cc), or
//                 in blocks of 32 x 32 on AMX (core/kernels/amx_bf16.cc)
//   direct        few rows: each key is read once, as it lies, so packing it
//                 would be the larger part of the work
//                 (core/kernels/direct-inl.h)
//
// Memory traffic of a tile of R rows over a tile of C keys: K^T and V are read
// once from the second-level cache for each block of 6 rows, R / 6 times; the
// scores are written once, turned into weights in place, and read once. So a
// multiply-add costs (1/6 + 1/4) loads, of which the cache gives two a cycle.
// Direct: each byte of K and V comes from memory once, whatever the rows.
//
// Edges. A block of rows computes the keys that any of its rows sees. Where
// they do not all see the same, hidden scores are set aside by a bit a key and
// get weight 0. A hidden value could still reach a row as 0 * NaN: tiles that
// hold such values take the careful way, row by row with hidden values left
// out.
//
// Bits. A row's result depends on its own scores and on where the tiles and
// their pieces begin, which is the same for every row; neither on which rows
// share its block nor on how much of a tile the others see.
#include "core/kernels/flash_attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>

#include "core/checked_math.h"
#include "core/kernels/amx_bf16.h"
#include "core/kernels/geometry.h"
#include "core/kernels/microkernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/kernels/flash_attention.cc"
#include "hwy/foreach_target.h"
// Highway must come after foreach_target.
#include "core/kernels/convert-inl.h"
#include "core/kernels/direct-inl.h"
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504088896340736F;

// Keys of one AMX product, in pairs.
constexpr int64_t kAmxKeys = 2 * kAmxSteps;

// ---------------------------------------------------------------------------
// Packing

int64_t PanelWords(const FlashJob& job) {
  return kPanelKeys * RowWords(job.plan.isa, job.params.head_dim);
}

int64_t ValueStride(const FlashJob& job) {
  return RoundToLine(job.params.v_head_dim);
}

void PackKeys(const FlashJob& job, const std::byte* from, int64_t keys,
              float* to) {
  const int64_t stride = job.key.strides[2];
  const int64_t dims = job.params.head_dim;
  VisitType(job.params.key_dtype, [&](auto as) {
    using As = decltype(as);
    const auto* rows = reinterpret_cast<const typename As::Element*>(from);
    if (ElementsPerWord(job.plan.isa) == 2) {
      PackPanelAsPairs<As>(rows, stride, keys, dims,
                           RowWords(job.plan.isa, dims), to);
    } else {
      PackPanel<As>(rows, stride, keys, dims, job.plan.bf16_products, to);
    }
  });
}

void PackValues(const FlashJob& job, const std::byte* from, int64_t keys,
                float* to) {
  const int64_t stride = job.value.strides[2];
  const int64_t dims = job.params.v_head_dim;
  VisitType(job.params.value_dtype, [&](auto as) {
    using As = decltype(as);
    const auto* rows = reinterpret_cast<const typename As::Element*>(from);
    if (ElementsPerWord(job.plan.isa) == 2) {
      PackValuePairChunk<As>(rows, stride, keys, dims, to);
    } else {
      PackValueChunk<As>(rows, stride, keys, dims, job.plan.bf16_products, to);
    }
  });
}

void Pack(const FlashJob& job, int64_t task) {
  const AttentionParams& params = job.params;
  const PackTask part = job.plan.Pack(task);
  const BatchEntry entry = job.problem.mask().Entry(part.entry);
  const int64_t base = job.plan.FirstKey(part.entry, part.kv_head);
  const auto row = [&](const TensorView<const std::byte>& tensor, DataType type,
                       int64_t key) {
    return tensor.RowBytes(SizeOf(type), entry.batch, part.kv_head,
                           entry.kv_begin + key);
  };
  for (int64_t key = part.first; key < part.last; key += kPanelKeys) {
    PackKeys(job, row(job.key, params.key_dtype, key),
             std::min(kPanelKeys, part.last - key),
             job.packed_keys + (base + key) / kPanelKeys * PanelWords(job));
  }
  for (int64_t key = part.first; key < part.last; key += kKeysPerSum) {
    PackValues(job, row(job.value, params.value_dtype, key),
               std::min(kKeysPerSum, part.last - key),
               job.packed_values + (base + key) /
                                       ElementsPerWord(job.plan.isa) *
                                       ValueStride(job));
  }
}

// ---------------------------------------------------------------------------
// A tile

// What AddCarefully calls for a row and a vector of columns.
void AmxAddOneRow(const float* weights, int64_t weight_stride,
                  const void* value, int64_t value_stride, int64_t steps,
                  float* output, int64_t output_stride, Ahead /*ahead*/) {
  AmxAddValues(1, 1, weights, weight_stride,
               {.first = static_cast<const float*>(value),
                .row_words = value_stride,
                .chunk_words = kKeysPerSum / 2 * value_stride},
               0, steps, output, output_stride);
}

// One tile: rows of the matrix that the heads of a GQA group make up, and the
// keys of one split.
class Tile {
 public:
  Tile(const FlashJob& job, int64_t task, float* slot)
      : job_(job),
        params_(job.params),
        plan_(job.plan),
        task_(plan_.Tile(task)),
        entry_plan_(plan_.Entry(task_.entry)),
        entry_(job.problem.mask().Entry(task_.entry)),
        layout_(SlotLayout::Of(kGeometry, {.tile_q = plan_.tile_q,
                                           .tile_kv = plan_.tile_kv,
                                           .head_dim = params_.head_dim,
                                           .v_head_dim = params_.v_head_dim,
                                           .converts_values = false})),
        slot_(slot),
        magnitude_(ScoreScale(params_).magnitude),
        scale_log2_((params_.AdjustsScores() ? 1 : magnitude_) * kLog2E),
        // Direct tiles multiply f32 whatever tiled ones do.
        isa_(entry_plan_.direct ? F32Isa(plan_.isa) : plan_.isa),
        per_word_(ElementsPerWord(isa_)),
        kernels_(isa_ == Isa::kAvx512Bf16 ? Bf16DotMicrokernels()
                                          : kMicrokernels),
        weights_(per_word_ == 2                          ? WeightKind::kBf16
                 : params_.precision == Precision::kBF16 ? WeightKind::kRounded
                                                         : WeightKind::kF32),
        rows_(job.scores, entry_, task_.kv_head,
              task_.tile * entry_plan_.tile_q,
              std::min(entry_plan_.tile_q,
                       params_.HeadsPerGroup() * entry_.q_len -
                           task_.tile * entry_plan_.tile_q),
              reinterpret_cast<uint8_t*>(slot + layout_.visible),
              layout_.visible_stride * 4, GeometryOf(isa_).rows,
              isa_ == Isa::kAmxBf16 ? kAmxKeys : kLanes),
        span_(rows_.Span()) {
    if (entry_plan_.splits > 1) {
      const int64_t begin = task_.split * KernelPlan::kKeysPerSplit;
      span_ = Clip(span_, begin, begin + KernelPlan::kKeysPerSplit);
    }
  }

  // The keys that any row sees.
  const KeyRange& span() const { return span_; }

  // Before the first kv tile of a fresh tile.
  void Reset() {
    std::fill_n(slot_ + layout_.max, rows_.rows(), kMinusInfinity);
    std::fill_n(slot_ + layout_.sum_lanes, rows_.rows() * kLanes, 0.0F);
    std::fill_n(slot_ + layout_.output, rows_.rows() * layout_.output_stride,
                0.0F);
    LoadQuery();
  }

  // Takes in keys begin <= j < end; begin is a multiple of the tile.
  void Absorb(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    if (!rows_.LookAt(begin, end)) return;
    LocateValues();
    if (entry_plan_.direct) {
      ScoreDirect();
    } else {
      FetchAhead(PackedValues(), (end - begin) / per_word_ * value_stride_);
      if (isa_ == Isa::kAmxBf16) {
        ScoreByAmx();
      } else {
        ScorePanels();
      }
      const int64_t next = std::min(plan_.tile_kv, span_.end - end);
      FetchAhead(Panel(end), next / kPanelKeys * PanelWords(job_));
    }
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      if (rows_.block(b).seen.size() > 0) Softmax(rows_.block(b));
    }
    if (entry_plan_.direct) {
      AddValuesDirect();
    } else if (isa_ == Isa::kAmxBf16) {
      AddValuesByAmx();
    } else {
      AddValues();
    }
  }

  // Writes output and lse, or what the merge needs.
  void Finish() const;

 private:
  void LoadQuery() {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      const std::byte* from =
          job_.query.RowBytes(SizeOf(params_.query_dtype), entry_.batch, head,
                              entry_.q_begin + q_row);
      float* to = Query(r);
      VisitType(params_.query_dtype, [&](auto as) {
        using As = decltype(as);
        const auto* row = reinterpret_cast<const typename As::Element*>(from);
        if (per_word_ == 2) {
          ConvertRowToBf16<As>(row, params_.head_dim,
                               2 * RowWords(isa_, params_.head_dim), factor,
                               reinterpret_cast<uint16_t*>(to));
        } else {
          ConvertRow<As>(row, params_.head_dim, layout_.q_stride, factor,
                         weights_ == WeightKind::kRounded, to);
        }
      });
    }
  }

  // Where the tile's values are for the microkernels.
  void LocateValues() {
    checked_values_ = false;
    value_stride_ = ValueStride(job_);
    value_type_ = DataType::kF32;
    if (!entry_plan_.direct) {
      value_ = reinterpret_cast<const std::byte*>(PackedValues());
      return;
    }
    const int64_t bytes = SizeOf(params_.value_dtype);
    const std::byte* row = job_.value.RowBytes(
        bytes, entry_.batch, task_.kv_head, entry_.kv_begin + begin_);
    if (!plan_.converts_values || (!ConvertsAlways() && AllPlain())) {
      value_ = row;
      value_stride_ = job_.value.strides[2];
      value_type_ = params_.value_dtype;
      return;
    }
    float* const to = slot_ + layout_.values;
    VisitType(params_.value_dtype, [&](auto as) {
      using As = decltype(as);
      const auto* from = reinterpret_cast<const typename As::Element*>(row);
      for (int64_t j = 0; j < end_ - begin_; ++j) {
        ConvertRow<As>(from + j * job_.value.strides[2], params_.v_head_dim,
                       value_stride_, 1, plan_.bf16_products,
                       to + j * value_stride_);
      }
    });
    value_ = reinterpret_cast<const std::byte*>(to);
  }

  // Values that microkernels cannot read as they lie: rows that end within a
  // vector, or numbers that are to be rounded.
  bool ConvertsAlways() const {
    return params_.v_head_dim % kLanes != 0 ||
           (weights_ == WeightKind::kRounded &&
            params_.value_dtype != DataType::kBF16);
  }

  // Whether no block of the tile hides anything: what hides may have to look at
  // values, which it does as f32.
  bool AllPlain() const {
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() > 0 && !block.plain) return false;
    }
    return true;
  }

  // The values of a group of columns from the tile's key `key` on, which begins
  // a sum, and the words from one step to the next.
  // Words, but where direct tiles read them as they lie.
  const std::byte* Values(int64_t key, int64_t column) const {
    const int64_t at = entry_plan_.direct
                           ? key * value_stride_ + column
                           : key / per_word_ * value_stride_ +
                                 column * (kKeysPerSum / per_word_);
    return value_ + at * SizeOf(value_type_);
  }
  int64_t ValueStep(int64_t vectors) const {
    return entry_plan_.direct ? value_stride_ : vectors * kLanes;
  }

  // `words` from `from` on are what the next phase reads.
  void FetchAhead(const float* from, int64_t words) {
    ahead_ = from;
    ahead_end_ = from + words;
  }

  // The share of it for a microkernel of `steps` steps.
  Ahead TakeAhead(int64_t steps) {
    constexpr int64_t kLineWords = Ahead::kLineBytes / 4;
    if (ahead_ >= ahead_end_) return {slot_, false};
    const Ahead ahead(ahead_, true);
    ahead_ += std::min(steps * kLineWords, ahead_end_ - ahead_);
    return ahead;
  }

  void ScorePanels() {
    std::fill_n(slot_ + layout_.row_max_lanes, rows_.rows() * kLanes,
                kMinusInfinity);
    const int64_t steps = CeilDiv(params_.head_dim, per_word_);
    for (int64_t key = begin_; key < end_; key += kPanelKeys) {
      const float* panel = Panel(key);
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        const KeyRange seen = Clip(block.seen, key, key + kPanelKeys);
        if (seen.size() == 0) continue;
        const int64_t vectors = CeilDiv(seen.end - key, kLanes);
        kernels_.score[block.rows - 1][vectors - 1](
            Query(block.first), layout_.q_stride, panel, steps,
            Scores(block.first) + key - begin_, layout_.score_stride,
            slot_ + layout_.row_max_lanes + block.first * kLanes,
            TakeAhead(steps));
      }
    }
  }

  // As above, but for the rows' maxima.
  void ScoreByAmx() const {
    const int64_t steps = RowWords(isa_, params_.head_dim);
    for (int64_t key = begin_; key < end_; key += kPanelKeys) {
      const float* panel = Panel(key);
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        const KeyRange seen = Clip(block.seen, key, key + kPanelKeys);
        if (seen.size() == 0) continue;
        const int64_t vectors = CeilDiv(seen.end - key, kLanes);
        AmxScores(block.rows, vectors, Query(block.first), layout_.q_stride,
                  panel, steps, Scores(block.first) + key - begin_,
                  layout_.score_stride);
      }
    }
  }

  void ScoreDirect() const {
    const int64_t bytes = SizeOf(params_.key_dtype);
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() == 0) continue;
      const int64_t first = rows_.FirstVector(block.seen);
      const std::byte* from = job_.key.RowBytes(
          bytes, entry_.batch, task_.kv_head, entry_.kv_begin + begin_ + first);
      VisitType(params_.key_dtype, [&](auto as) {
        using As = decltype(as);
        DirectScores<As>(Query(block.first), layout_.q_stride,
                         reinterpret_cast<const typename As::Element*>(from),
                         job_.key.strides[2], block.seen.end - begin_ - first,
                         params_.head_dim, block.rows,
                         Scores(block.first) + first, layout_.score_stride);
      });
    }
  }

  // Turns a block's scores into weights and moves maxima and sums on. First
  // all maxima, then all weights: each row's steps wait for one another, but
  // not for those of the next row.
  void Softmax(const Block& block) {
    const int64_t begin = rows_.FirstVector(block.seen);
    const int64_t end = block.seen.end - begin_;
    const int64_t last = block.first + block.rows;
    float base[kMaxBlockRows];
    for (int64_t r = block.first; r < last; ++r) {
      Vec largest;
      if (!block.plain) {
        if (rows_.adjusts()) Adjust(r, begin, end);
        largest = HideRow(rows_.Visible(r), begin, end, Scores(r));
      } else if (entry_plan_.direct || isa_ == Isa::kAmxBf16) {
        largest = RowMax(Scores(r), begin, end);
      } else {
        largest = hn::Load(kF, slot_ + layout_.row_max_lanes + r * kLanes);
      }
      float& max = slot_[layout_.max + r];
      // Most tiles raise no maximum: then their own is of no interest.
      if (!hn::AllFalse(kF, hn::Gt(largest, hn::Set(kF, max)))) {
        const float new_max = hn::GetLane(
            hn::MaxOfLanes(kF, hn::Max(hn::Set(kF, max), IgnoreNan(largest))));
        if (max != kMinusInfinity) {
          Shrink(r, Exp2((max - new_max) * scale_log2_));
        }
        max = new_max;
      }
      // A row without a score above -inf keeps weights of 2^-inf = 0.
      base[r - block.first] = max == kMinusInfinity ? 0.0F : max;
    }
    for (int64_t r = block.first; r < last; ++r) {
      float* const sum = SumLanes(r);
      hn::Store(hn::Add(hn::Load(kF, sum), Weigh(r, block.plain, begin, end,
                                                 base[r - block.first])),
                kF, sum);
      if (isa_ == Isa::kAmxBf16) ZeroWeights(r, end);
    }
  }

  // Of keys from `end` on to where a product of whole tiles ends.
  void ZeroWeights(int64_t r, int64_t end) const {
    auto* const weights = reinterpret_cast<uint16_t*>(Scores(r));
    std::fill(weights + RoundUp(end, kLanes), weights + RoundUp(end, kAmxKeys),
              uint16_t{0});
  }

  static Vec IgnoreNan(Vec x) {
    return hn::IfThenElse(hn::Eq(x, x), x, hn::Set(kF, kMinusInfinity));
  }

  // What was summed before a larger score came up.
  void Shrink(int64_t r, float factor) {
    const Vec scale = hn::Set(kF, factor);
    const auto shrink = [&](float* x) HWY_ATTR {
      hn::Store(hn::Mul(hn::Load(kF, x), scale), kF, x);
    };
    shrink(SumLanes(r));
    float* output = Output(r);
    for (int64_t c = 0; c < layout_.output_stride; c += kLanes) {
      shrink(output + c);
    }
  }

  void Adjust(int64_t r, int64_t begin, int64_t end) const {
    VisitType(params_.bias_dtype, [&](auto as) {
      AdjustRow<decltype(as)>(rows_.Adjustment(r), begin, end, Scores(r));
    });
  }

  template <WeightKind kKind>
  Vec WeighAs(int64_t r, bool plain, int64_t begin, int64_t end,
              float max) const {
    if (max == std::numeric_limits<float>::infinity()) {
      return ExponentiateInfinite<kKind>(Scores(r),
                                         plain ? nullptr : rows_.Visible(r),
                                         begin, end, scale_log2_);
    }
    return plain ? Exponentiate<kKind, false>(Scores(r), nullptr, begin, end,
                                              scale_log2_, max)
                 : Exponentiate<kKind, true>(Scores(r), rows_.Visible(r), begin,
                                             end, scale_log2_, max);
  }

  Vec Weigh(int64_t r, bool plain, int64_t begin, int64_t end,
            float max) const {
    switch (weights_) {
      case WeightKind::kF32:
        return WeighAs<WeightKind::kF32>(r, plain, begin, end, max);
      case WeightKind::kRounded:
        return WeighAs<WeightKind::kRounded>(r, plain, begin, end, max);
      case WeightKind::kBf16:
        return WeighAs<WeightKind::kBf16>(r, plain, begin, end, max);
    }
    return hn::Zero(kF);
  }

  // Sums of keys outside, blocks inside: what one of them reads of V stays in
  // the first-level cache for all blocks.
  void AddValues() {
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t last = std::min(key + kKeysPerSum, end_);
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        const std::byte* values = Values(key - begin_, column);
        const int64_t stride = ValueStep(vectors);
        for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
          const Block& block = rows_.block(b);
          const KeyRange seen = Clip(block.seen, key, last);
          if (seen.size() == 0) continue;
          // In steps of the sum.
          const int64_t first = (seen.begin - key) / per_word_;
          const int64_t steps = CeilDiv(seen.end - key, per_word_) - first;
          if (!block.plain && !ValuesAreFinite()) {
            AddBlockCarefully(block, key, first, steps, column, vectors);
            continue;
          }
          kernels_.value[block.rows - 1][vectors - 1](
              Weights(block.first, key) + first, layout_.score_stride,
              values + first * stride * 4, stride, steps,
              Output(block.first) + column, layout_.output_stride,
              TakeAhead(steps));
        }
      });
    }
  }

  // The same of values as they lie, which the first block fetches from memory.
  // One block alone need not stop at every sum.
  void AddValuesDirect() {
    const int64_t window = rows_.num_blocks() > 1 ? kKeysPerSum : plan_.tile_kv;
    for (int64_t key = begin_; key < end_; key += window) {
      const int64_t last = std::min(key + window, end_);
      bool ahead = true;
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        const KeyRange seen = Clip(block.seen, key, last);
        if (seen.size() == 0) continue;
        if (!block.plain && !ValuesAreFinite()) {
          AddDirectCarefully(block, seen);
          continue;
        }
        VisitType(value_type_, [&](auto as) {
          using As = decltype(as);
          DirectValues<As>(Weights(block.first, key), layout_.score_stride,
                           reinterpret_cast<const typename As::Element*>(
                               Values(key - begin_, 0)),
                           value_stride_, seen.begin - key, seen.end - key,
                           params_.v_head_dim, block.rows, Output(block.first),
                           layout_.output_stride, ahead);
        });
        ahead = false;
      }
    }
  }

  void AddDirectCarefully(const Block& block, const KeyRange& seen) const {
    for (int64_t key = begin_; key < seen.end; key += kKeysPerSum) {
      const KeyRange of = Clip(seen, key, key + kKeysPerSum);
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        AddBlockCarefully(block, key, of.begin - key, of.size(), column,
                          vectors);
      });
    }
  }

  // Columns outside, blocks inside, and all keys of the tile at once: results
  // stay in tiles.
  void AddValuesByAmx() {
    VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
      const AmxValues values = {
          .first = reinterpret_cast<const float*>(Values(0, column)),
          .row_words = ValueStep(vectors),
          .chunk_words = kKeysPerSum / per_word_ * value_stride_};
      for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
        const Block& block = rows_.block(b);
        if (block.seen.size() == 0) continue;
        // In steps, by whole tiles: weights are 0 in what this adds.
        const int64_t first =
            (block.seen.begin - begin_) / kAmxKeys * kAmxSteps;
        const int64_t last =
            CeilDiv(block.seen.end - begin_, kAmxKeys) * kAmxSteps;
        if (block.plain || ValuesAreFinite()) {
          AmxAddValues(block.rows, vectors, Weights(block.first, begin_),
                       layout_.score_stride, values, first, last,
                       Output(block.first) + column, layout_.output_stride);
          continue;
        }
        constexpr int64_t kSteps = kKeysPerSum / 2;
        for (int64_t step = first / kSteps * kSteps; step < last;
             step += kSteps) {
          const int64_t from = std::max(first, step);
          AddBlockCarefully(block, begin_ + step * per_word_, from - step,
                            std::min(last, step + kSteps) - from, column,
                            vectors);
        }
      }
    });
  }

  // Whether no value of the tile is NaN or infinite. Looked up once a tile, by
  // those blocks that hide some of it.
  bool ValuesAreFinite() {
    if (checked_values_) return values_finite_;
    checked_values_ = values_finite_ = true;
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t keys = std::min(kKeysPerSum, end_ - key);
      const int64_t steps = isa_ == Isa::kAmxBf16 ? RoundUp(keys, kAmxKeys) / 2
                                                  : CeilDiv(keys, per_word_);
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        const auto* words =
            reinterpret_cast<const float*>(Values(key - begin_, column));
        for (int64_t step = 0; step < steps; ++step) {
          values_finite_ &= AllFinite(words + step * ValueStep(vectors),
                                      vectors, per_word_ == 2);
        }
      });
    }
    return values_finite_;
  }

  void AddBlockCarefully(const Block& block, int64_t key, int64_t first,
                         int64_t steps, int64_t column, int64_t vectors) const {
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto keep = [&](int64_t step) {
        uint32_t bits = 0;
        for (int64_t i = 0; i < per_word_; ++i) {
          const int64_t at = key - begin_ + (first + step) * per_word_ + i;
          if (at >= block.seen.end - begin_) continue;
          if (!IsVisible(rows_.Visible(r), at)) continue;
          bits |= per_word_ == 1 ? 0xFFFFFFFFU : 0xFFFFU << (16 * i);
        }
        return bits;
      };
      const float* from =
          reinterpret_cast<const float*>(Values(key - begin_, column)) +
          first * ValueStep(vectors);
      for (int64_t v = 0; v < vectors; ++v) {
        AddCarefully(
            isa_ == Isa::kAmxBf16 ? &AmxAddOneRow : kernels_.value[0][0],
            Weights(r, key) + first, layout_.score_stride, from + v * kLanes,
            ValueStep(vectors), steps, keep, Output(r) + column + v * kLanes);
      }
    }
  }

  float* Query(int64_t r) const {
    return slot_ + layout_.query + r * layout_.q_stride;
  }
  float* Scores(int64_t r) const {
    return slot_ + layout_.scores + r * layout_.score_stride;
  }
  float* SumLanes(int64_t r) const {
    return slot_ + layout_.sum_lanes + r * kLanes;
  }
  float Sum(int64_t r) const {
    return hn::GetLane(hn::SumOfLanes(kF, hn::Load(kF, SumLanes(r))));
  }
  // Those of the keys from `key` on, in words.
  const float* Weights(int64_t r, int64_t key) const {
    return Scores(r) + (key - begin_) / per_word_;
  }
  float* Output(int64_t r) const {
    return slot_ + layout_.output + r * layout_.output_stride;
  }
  const float* PackedValues() const {
    const int64_t key = plan_.FirstKey(task_.entry, task_.kv_head) + begin_;
    return job_.packed_values + key / per_word_ * ValueStride(job_);
  }
  const float* Panel(int64_t key) const {
    return job_.packed_keys +
           (plan_.FirstKey(task_.entry, task_.kv_head) + key) / kPanelKeys *
               PanelWords(job_);
  }

  const FlashJob& job_;
  const AttentionParams& params_;
  const KernelPlan& plan_;
  const TileTask task_;
  const EntryPlan& entry_plan_;
  const BatchEntry entry_;
  const SlotLayout layout_;
  float* const slot_;
  const float magnitude_;
  const float scale_log2_;  // c above
  const Isa isa_;           // of the products
  const int64_t per_word_;
  const Microkernels& kernels_;  // but on AMX
  const WeightKind weights_;
  RowTile rows_;
  KeyRange span_;
  int64_t begin_ = 0;  // the tile of keys in work
  int64_t end_ = 0;
  const std::byte* value_ = nullptr;  // its values, value_stride_ a step
  int64_t value_stride_ = 0;
  DataType value_type_ = DataType::kF32;  // or any word
  bool checked_values_ = false;
  bool values_finite_ = false;
  const float* ahead_ = nullptr;
  const float* ahead_end_ = nullptr;
};

// Writes one row's output and lse: `output` unnormalised, `max` in the units of
// the scores as the softmax has them.
void FinishRow(const FlashJob& job, const BatchEntry& entry, int64_t head,
               int64_t q_row, const float* output, float max, float sum) {
  const AttentionParams& params = job.params;
  const int64_t row = entry.q_begin + q_row;
  const double scale =
      params.AdjustsScores() ? 1.0 : double{ScoreScale(params).magnitude};
  const float sink = params.has_sinks
                         ? job.problem.sink_logits()[static_cast<size_t>(head)]
                         : kMinusInfinity;
  float divisor = 1;
  double lse{sink};
  if (sum != 0) {
    // exp(sink) joins the sum, on the scale of the larger of the two.
    const double top = scale * double{max};
    const double base = std::max(top, lse);
    const double shrink = top == base ? 1.0 : std::exp(top - base);
    const double total =
        double{sum} * shrink + (lse == -HUGE_VAL ? 0 : std::exp(lse - base));
    divisor = static_cast<float>(total / shrink);
    if (job.lse.data != nullptr) lse = base + std::log(total);
  }
  if (job.lse.data != nullptr) {
    *job.lse.Row(entry.batch, head, row) = static_cast<float>(lse);
  }
  std::byte* const to =
      job.output.RowBytes(SizeOf(params.output_dtype), entry.batch, head, row);
  VisitType(params.output_dtype, [&](auto as) {
    using As = decltype(as);
    auto* out = reinterpret_cast<typename As::Element*>(to);
    const Vec whole = hn::Set(kF, divisor);
    int64_t c = 0;
    const auto at = [&]() HWY_ATTR {
      // A row of no weight is 0 even where its sums are not.
      return sum == 0 ? hn::Zero(kF)
                      : hn::Div(hn::LoadU(kF, output + c), whole);
    };
    for (; c + kLanes <= params.v_head_dim; c += kLanes) {
      As::Store(kF, at(), out + c);
    }
    if (c < params.v_head_dim) {
      StoreFirst<As>(kF, at(), out + c,
                     static_cast<size_t>(params.v_head_dim - c));
    }
  });
}

void Tile::Finish() const {
  if (entry_plan_.splits == 1) {
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto [head, q_row] = rows_.HeadAndRow(r);
      FinishRow(job_, entry_, head, q_row, Output(r), slot_[layout_.max + r],
                Sum(r));
    }
    return;
  }
  const PartialLayout layout =
      PartialLayout::Of(plan_.tile_q, params_.v_head_dim);
  float* const to = job_.partials + plan_.PartialIndex(task_) * layout.total;
  std::copy_n(slot_ + layout_.output, rows_.rows() * layout_.output_stride, to);
  std::copy_n(slot_ + layout_.max, rows_.rows(), to + layout.max);
  for (int64_t r = 0; r < rows_.rows(); ++r) to[layout.sum + r] = Sum(r);
}

void Merge(const FlashJob& job, int64_t task) {
  const AttentionParams& params = job.params;
  const TileTask tile = job.plan.Merge(task);
  const EntryPlan& plan = job.plan.Entry(tile.entry);
  const BatchEntry entry = job.problem.mask().Entry(tile.entry);
  const PartialLayout layout =
      PartialLayout::Of(job.plan.tile_q, params.v_head_dim);
  const float c =
      (params.AdjustsScores() ? 1 : ScoreScale(params).magnitude) * kLog2E;
  float* const first =
      job.partials + job.plan.PartialIndex(tile) * layout.total;
  const int64_t first_row = tile.tile * plan.tile_q;
  const int64_t rows =
      std::min(plan.tile_q, params.HeadsPerGroup() * entry.q_len - first_row);
  for (int64_t r = 0; r < rows; ++r) {
    float max = kMinusInfinity;
    for (int64_t s = 0; s < plan.splits; ++s) {
      max = std::max(max, first[s * layout.total + layout.max + r]);
    }
    float sum = 0;
    float* const output = first + r * layout.output_stride;
    for (int64_t s = 0; s < plan.splits; ++s) {
      const float* part = first + s * layout.total;
      const float part_max = part[layout.max + r];
      const float factor = part_max == max ? 1.0F
                           : part_max == kMinusInfinity
                               ? 0.0F
                               : Exp2((part_max - max) * c);
      sum += part[layout.sum + r] * factor;
      const float* from = part + r * layout.output_stride;
      const Vec scale = hn::Set(kF, factor);
      for (int64_t d = 0; d < layout.output_stride; d += kLanes) {
        const Vec x = hn::Mul(hn::Load(kF, from + d), scale);
        hn::Store(s == 0 ? x : hn::Add(hn::Load(kF, output + d), x), kF,
                  output + d);
      }
    }
    const int64_t row = first_row + r;
    FinishRow(job, entry,
              tile.kv_head * params.HeadsPerGroup() + row / entry.q_len,
              row % entry.q_len, output, max, sum);
  }
}

// The first words of a slot. `next_key` < 0: no tile is in progress.
struct SlotHeader {
  int64_t next_key;
};

SlotHeader LoadHeader(const float* slot) {
  SlotHeader header;
  std::memcpy(&header, slot, sizeof(header));
  return header;
}

void StoreHeader(float* slot, SlotHeader header) {
  std::memcpy(slot, &header, sizeof(header));
}

void InitSlot(float* slot) { StoreHeader(slot, {.next_key = -1}); }

TileJob::Slice RunTile(const FlashJob& job, int64_t task, float* slot,
                       SliceControl& control) {
  Tile tile(job, task, slot);
  std::optional<AmxTiles> amx;
  if (job.plan.isa == Isa::kAmxBf16) amx.emplace();
  const KeyRange span = tile.span();
  const int64_t tile_kv = job.plan.tile_kv;
  int64_t key = LoadHeader(slot).next_key;
  if (key < 0) {
    tile.Reset();
    key = span.begin / tile_kv * tile_kv;
  }
  while (key < span.end) {
    const int64_t end = std::min(key + tile_kv, span.end);
    tile.Absorb(key, end);
    key = end;
    if (key == span.end) break;
    if (control.ShouldStop()) return TileJob::Slice::kDone;
    if (control.ShouldYield()) {
      StoreHeader(slot, {.next_key = key});
      return TileJob::Slice::kYield;
    }
  }
  tile.Finish();
  InitSlot(slot);
  return TileJob::Slice::kDone;
}

}  // namespace

const FlashKernel& Kernel() {
  static constexpr FlashKernel kKernel = {&Pack, &InitSlot, &RunTile, &Merge};
  return kKernel;
}

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attnd {

const FlashKernel& GetFlashKernel(Isa isa) {
  switch (isa) {
#if HWY_TARGETS & HWY_AVX3
    case Isa::kAmxBf16:
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      return N_AVX3::Kernel();
#endif
#if HWY_TARGETS & HWY_AVX2
    case Isa::kAvx2:
      return N_AVX2::Kernel();
#endif
    default:
      return HWY_STATIC_DISPATCH(Kernel)();
  }
}

FlashJob::FlashJob(const AttentionProblem& of_problem,
                   const KernelPlan& of_plan, const AttentionBuffers& buffers,
                   std::byte* workspace)
    : problem(of_problem),
      params(of_problem.params()),
      plan(of_plan),
      scores(of_problem, buffers.bias, buffers.mask) {
  const auto bytes = [](const void* data) {
    return static_cast<const std::byte*>(data);
  };
  query = problem.QueryView(bytes(buffers.query));
  key = problem.KeyView(bytes(buffers.key));
  value = problem.ValueView(bytes(buffers.value));
  output = problem.OutputView(static_cast<std::byte*>(buffers.output));
  lse = problem.LseView(params.return_lse ? buffers.lse : nullptr);
  const auto take = [&workspace](int64_t size_bytes) {
    std::byte* const part = workspace;
    workspace += size_bytes;
    return reinterpret_cast<float*>(part);
  };
  packed_keys = take(plan.packed_keys_bytes);
  packed_values = take(plan.packed_values_bytes);
  partials = take(plan.partial_bytes);
  slots = workspace;
}

}  // namespace attnd
#endif  // HWY_ONCE
