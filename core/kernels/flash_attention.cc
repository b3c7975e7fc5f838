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
//   bf16x3        f32 on AMX: every number is split into three bf16, and six
//                 products make one of f32 (core/kernels/amx_bf16.cc). What has
//                 no such parts, NaN and infinities, is mended in f32; tiles of
//                 nothing but tiny numbers are direct
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
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>
#include <thread>
#include <utility>

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
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/softmax-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504088896340736F;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The m of a row need not be its largest score: weights cancel against their
// sum. So it stays until a weight would exceed two to this, and what was summed
// is scaled anew once or never.
constexpr float kMostGrowth = 8;

// Keys of one AMX product, in pairs.
constexpr int64_t kAmxKeys = 2 * kAmxSteps;

// ---------------------------------------------------------------------------
// Packing

int64_t PanelWords(const FlashJob& job) {
  return kPanelKeys * RowWords(job.plan.isa, job.params.head_dim) *
         job.plan.parts;
}

int64_t ValueStride(const FlashJob& job) {
  return RoundToLine(job.params.v_head_dim);
}

// Both return the largest magnitude where the plan wants parts, else 0.
uint32_t PackKeys(const FlashJob& job, const std::byte* from, int64_t keys,
                  float* to) {
  uint32_t largest = 0;
  const int64_t stride = job.key.strides[2];
  const int64_t dims = job.params.head_dim;
  VisitType(job.params.key_dtype, [&](auto as) {
    using As = decltype(as);
    const auto* rows = reinterpret_cast<const typename As::Element*>(from);
    if (job.plan.parts > 1) {
      largest = LargestOf(
          PackKeyTiles<kBf16PartsOfF32, As>(rows, stride, keys, dims, to));
    } else if (job.plan.isa == Isa::kAmxBf16) {
      PackKeyTiles<1, As>(rows, stride, keys, dims, to);
    } else if (job.plan.isa == Isa::kAvx512Bf16) {
      PackPanelAsPairs<As>(rows, stride, keys, dims, to);
    } else {
      PackPanel<As>(rows, stride, keys, dims, job.plan.bf16_products, to);
    }
  });
  return largest;
}

uint32_t PackValues(const FlashJob& job, const std::byte* from, int64_t keys,
                    float* to) {
  uint32_t largest = 0;
  const int64_t stride = job.value.strides[2];
  const int64_t dims = job.params.v_head_dim;
  VisitType(job.params.value_dtype, [&](auto as) {
    using As = decltype(as);
    const auto* rows = reinterpret_cast<const typename As::Element*>(from);
    if (job.plan.parts > 1) {
      largest = LargestOf(
          PackValueTiles<kBf16PartsOfF32, As>(rows, stride, keys, dims, to));
    } else if (job.plan.isa == Isa::kAmxBf16) {
      PackValueTiles<1, As>(rows, stride, keys, dims, to);
    } else if (job.plan.isa == Isa::kAvx512Bf16) {
      PackValuePairChunk<As>(rows, stride, keys, dims, to);
    } else {
      PackValueChunk<As>(rows, stride, keys, dims, job.plan.bf16_products, to);
    }
  });
  return largest;
}

// Words of the values of `keys` keys, whole sums.
int64_t ValueWords(const FlashJob& job, int64_t keys) {
  return keys / ElementsPerWord(job.plan.isa) * ValueStride(job) *
         job.plan.parts;
}

void RaiseTo(uint32_t& largest, uint32_t value) {
  const std::atomic_ref shared(largest);
  uint32_t old = shared.load(std::memory_order_relaxed);
  while (old < value &&
         !shared.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
}

void Pack(const FlashJob& job, const PackTask& part, HeadPacking& packing) {
  const AttentionParams& params = job.params;
  const BatchEntry entry = job.problem.mask().Entry(part.entry);
  const int64_t base = job.plan.FirstKey(part.entry, part.kv_head);
  const auto row = [&](const TensorView<const std::byte>& tensor, DataType type,
                       int64_t key) {
    return tensor.RowBytes(SizeOf(type), entry.batch, part.kv_head,
                           entry.kv_begin + key);
  };
  uint32_t largest_key = 0;
  uint32_t largest_value = 0;
  for (int64_t key = part.first; key < part.last; key += kPanelKeys) {
    const uint32_t of_panel =
        PackKeys(job, row(job.key, params.key_dtype, key),
                 std::min(kPanelKeys, part.last - key),
                 job.packed_keys + (base + key) / kPanelKeys * PanelWords(job));
    largest_key = std::max(largest_key, of_panel);
  }
  for (int64_t key = part.first; key < part.last; key += kKeysPerSum) {
    const uint32_t of_chunk =
        PackValues(job, row(job.value, params.value_dtype, key),
                   std::min(kKeysPerSum, part.last - key),
                   job.packed_values + ValueWords(job, base + key));
    largest_value = std::max(largest_value, of_chunk);
  }
  RaiseTo(packing.largest_key, largest_key);
  RaiseTo(packing.largest_value, largest_value);
}

// Packs what is left of a tile's kv head, and waits for the pieces that other
// tiles are at. Right before the tiles that read it, so that it is still in the
// caches then. kDone where the job should stop; nothing when all is packed.
std::optional<TileJob::Slice> PackHead(const FlashJob& job,
                                       const TileTask& tile,
                                       SliceControl& control) {
  const auto pieces = static_cast<uint32_t>(job.plan.PackTasks(tile.entry));
  if (pieces == 0) return std::nullopt;
  HeadPacking& packing = job.Packing(tile.entry, tile.kv_head);
  const std::atomic_ref claimed(packing.claimed);
  const std::atomic_ref packed(packing.packed);
  while (packed.load(std::memory_order_acquire) < pieces) {
    uint32_t piece = claimed.load(std::memory_order_relaxed);
    if (piece < pieces && claimed.compare_exchange_weak(
                              piece, piece + 1, std::memory_order_relaxed)) {
      const PackTask task = job.plan.Pack(tile.entry, tile.kv_head, piece);
      if (job.source != nullptr) job.Load(task);
      Pack(job, task, packing);
      packed.fetch_add(1, std::memory_order_release);
    } else if (piece >= pieces) {
      std::this_thread::yield();
    }
    if (control.ShouldStop()) return TileJob::Slice::kDone;
    if (control.ShouldYield()) return TileJob::Slice::kYield;
  }
  return std::nullopt;
}

// ---------------------------------------------------------------------------
// A tile

// What AddCarefully calls for a row and a tile of values.
void AmxAddOneRow(const float* weights, int64_t weight_stride,
                  const void* value, int64_t /*value_stride*/, int64_t steps,
                  float* output, int64_t output_stride, Ahead /*ahead*/) {
  AmxAddValues(
      1, 1, 1, {.first = weights, .stride = weight_stride, .part_words = 0},
      static_cast<const float*>(value), 0, 0, steps, output, output_stride);
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
                                           .converts_values = false,
                                           .parts = plan_.parts})),
        slot_(slot),
        magnitude_(ScoreScale(params_).magnitude),
        scale_log2_((params_.AdjustsScores() ? 1 : magnitude_) * kLog2E),
        slack_(std::min(kMostGrowth / scale_log2_, 0x1p100F)),
        largest_query_(plan_.parts > 1 ? LargestQuery() : 0),
        direct_(entry_plan_.direct || (plan_.parts > 1 && !HasParts())),
        // Direct tiles multiply f32 whatever tiled ones do.
        isa_(direct_ ? F32Isa(plan_.isa) : plan_.isa),
        parts_(direct_ ? 1 : plan_.parts),
        per_word_(ElementsPerWord(isa_)),
        kernels_(isa_ == Isa::kAvx512Bf16 ? Bf16DotMicrokernels()
                                          : kMicrokernels),
        weights_(parts_ > 1                              ? WeightKind::kParts
                 : per_word_ == 2                        ? WeightKind::kBf16
                 : params_.precision == Precision::kBF16 ? WeightKind::kRounded
                                                         : WeightKind::kF32),
        score_stride_(parts_ > 1 ? layout_.parts_stride : layout_.score_stride),
        rows_(job.scores, entry_, task_.kv_head,
              task_.tile * entry_plan_.tile_q, NumRows(),
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
    if (isa_ == Isa::kAmxBf16) {
      AbsorbByAmx();
      return;
    }
    LocateValues();
    if (direct_) {
      ScoreDirect();
    } else {
      FetchAhead(PackedValues(), ValueWords(job_, end - begin));
      ScorePanels();
      const int64_t next = std::min(plan_.tile_kv, span_.end - end);
      FetchAhead(Panel(end), next / kPanelKeys * PanelWords(job_));
    }
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      if (rows_.block(b).seen.size() > 0) Softmax(rows_.block(b));
    }
    if (direct_) {
      AddValuesDirect();
    } else {
      AddValues();
    }
  }

  // Writes output and lse, or what the merge needs.
  void Finish() const;

 private:
  int64_t NumRows() const {
    return std::min(entry_plan_.tile_q, params_.HeadsPerGroup() * entry_.q_len -
                                            task_.tile * entry_plan_.tile_q);
  }

  const HeadPacking& Packing() const {
    return job_.Packing(task_.entry, task_.kv_head);
  }

  // Of the rows that see something; nobody knows what the others hold.
  uint32_t LargestQuery() const {
    Bits largest = hn::Zero(kU);
    for (int64_t r = 0; r < NumRows(); ++r) {
      const int64_t row = task_.tile * entry_plan_.tile_q + r;
      const int64_t q_row = row % entry_.q_len;
      if (entry_.VisibleRange(q_row).size() == 0) continue;
      const int64_t head =
          task_.kv_head * params_.HeadsPerGroup() + row / entry_.q_len;
      VisitType(params_.query_dtype, [&](auto as) {
        using As = decltype(as);
        largest = hn::Max(
            largest,
            RowMagnitudes<As>(QueryRow<As>({head, q_row}), params_.head_dim));
      });
    }
    return LargestOf(largest);
  }

  bool HasParts() const {
    return HaveParts(largest_query_, kLeastScored) &&
           HaveParts(Packing().largest_key, kLeastScored) &&
           HaveParts(Packing().largest_value, kLeastValue);
  }

  // As it lies.
  template <class As>
  const typename As::Element* QueryRow(
      std::pair<int64_t, int64_t> head_and_row) const {
    const auto& [head, q_row] = head_and_row;
    return reinterpret_cast<const typename As::Element*>(
        job_.query.RowBytes(SizeOf(params_.query_dtype), entry_.batch, head,
                            entry_.q_begin + q_row));
  }

  void LoadQuery() {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = 0; r < rows_.rows(); ++r) {
      const auto at = rows_.HeadAndRow(r);
      float* to = Query(r);
      VisitType(params_.query_dtype, [&](auto as) {
        using As = decltype(as);
        const typename As::Element* const row = QueryRow<As>(at);
        const int64_t elements = 2 * RowWords(isa_, params_.head_dim);
        auto* const pairs = reinterpret_cast<uint16_t*>(to);
        if (parts_ > 1) {
          Bits unused = hn::Zero(kU);
          SplitRow<kBf16PartsOfF32, As>(row, params_.head_dim, elements, factor,
                                        pairs, elements, unused);
        } else if (per_word_ == 2) {
          ConvertRowToBf16<As>(row, params_.head_dim, elements, factor, pairs);
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
    if (!direct_) {
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
    const int64_t at =
        direct_ ? key * value_stride_ + column
                : ValueWords(job_, key) + column * (kKeysPerSum / per_word_);
    return value_ + at * SizeOf(value_type_);
  }
  int64_t ValueStep(int64_t vectors) const {
    return direct_ ? value_stride_ : vectors * kLanes;
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
            Scores(block.first) + key - begin_, score_stride_,
            slot_ + layout_.row_max_lanes + block.first * kLanes,
            TakeAhead(steps));
      }
    }
  }

  // One block after the other, so that its scores and weights stay in the
  // first-level cache: products are so fast that these would be half of the
  // traffic.
  void AbsorbByAmx() {
    checked_values_ = false;
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() == 0) continue;
      first_scored_ = block.first;
      ScoreByAmx(block);
      if (parts_ > 1 && MayOverflow()) MendScores(block);
      Softmax(block);
      AddValuesByAmx(block);
    }
  }

  // Whether dot products of the tile may be anything but finite.
  bool MayOverflow() const {
    const double largest = double{std::bit_cast<float>(largest_query_)} *
                           std::bit_cast<float>(Packing().largest_key);
    return !(largest * static_cast<double>(params_.head_dim) < 0x1p126);
  }

  // Products of parts make NaN of an infinite score: computes those anew.
  void MendScores(const Block& block) const {
    const float factor = ScoreScale(params_).query_factor;
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto at = rows_.HeadAndRow(r);
      for (int64_t key = block.seen.begin; key < block.seen.end; ++key) {
        float& score = Scores(r)[key - begin_];
        if (std::isfinite(score)) continue;
        score = 0;
        VisitType(params_.query_dtype, [&](auto q_as) {
          VisitType(params_.key_dtype, [&](auto k_as) {
            using QueryAs = decltype(q_as);
            using KeyAs = decltype(k_as);
            const auto* const query = QueryRow<QueryAs>(at);
            const auto* const keys =
                reinterpret_cast<const typename KeyAs::Element*>(
                    job_.key.RowBytes(SizeOf(params_.key_dtype), entry_.batch,
                                      task_.kv_head, entry_.kv_begin + key));
            for (int64_t d = 0; d < params_.head_dim; ++d) {
              score += factor * ElementAt<QueryAs>(query, d) *
                       ElementAt<KeyAs>(keys, d);
            }
          });
        });
      }
    }
  }

  template <class As>
  static float ElementAt(const typename As::Element* from, int64_t i) {
    return hn::GetLane(LoadFirst<As>(kF, from + i, 1));
  }

  void ScoreByAmx(const Block& block) const {
    const int64_t steps = RowWords(isa_, params_.head_dim);
    const int64_t first =
        begin_ + (block.seen.begin - begin_) / kAmxKeys * kAmxKeys;
    for (int64_t key = first; key < block.seen.end; key += kAmxKeys) {
      AmxScores(parts_, block.rows, 2,
                {.first = Query(block.first),
                 .stride = layout_.q_stride,
                 .part_words = steps},
                Panel(key) + key % kPanelKeys * steps * parts_, steps,
                Scores(block.first) + key - begin_, score_stride_);
    }
  }

  // All blocks that see any key, over the keys that any of them sees.
  void ScoreDirect() const {
    KeyRange seen;
    DirectRows groups[kMaxTileRows];
    size_t num_groups = 0;
    for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
      const Block& block = rows_.block(b);
      if (block.seen.size() == 0) continue;
      seen = Union(seen, block.seen);
      constexpr auto kMost = static_cast<int64_t>(kDirectRows);
      for (int64_t r = 0; r < block.rows; r += kMost) {
        groups[num_groups++] = {.q = Query(block.first + r),
                                .scores = Scores(block.first + r),
                                .rows = std::min(block.rows - r, kMost)};
      }
    }
    const int64_t first = rows_.FirstVector(seen);
    for (size_t g = 0; g < num_groups; ++g) groups[g].scores += first;
    const std::byte* from =
        job_.key.RowBytes(SizeOf(params_.key_dtype), entry_.batch,
                          task_.kv_head, entry_.kv_begin + begin_ + first);
    VisitType(params_.key_dtype, [&](auto as) {
      using As = decltype(as);
      DirectScores<As>({groups, num_groups}, layout_.q_stride,
                       reinterpret_cast<const typename As::Element*>(from),
                       job_.key.strides[2], seen.end - begin_ - first,
                       params_.head_dim, score_stride_);
    });
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
      } else if (direct_ || isa_ == Isa::kAmxBf16) {
        largest = RowMax(Scores(r), begin, end);
      } else {
        largest = hn::Load(kF, slot_ + layout_.row_max_lanes + r * kLanes);
      }
      float& max = slot_[layout_.max + r];
      // Most tiles do not raise it by much: then their own is of no interest.
      if (!hn::AllFalse(kF, hn::Gt(largest, hn::Set(kF, max + slack_)))) {
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
      if (weights_ == WeightKind::kBf16 && isa_ == Isa::kAmxBf16) {
        ZeroWeights(r, end);
      }
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
      return ExponentiateInfinite<kKind>(
          Scores(r), plain ? nullptr : rows_.Visible(r), begin, end,
          scale_log2_, layout_.weight_part);
    }
    return plain ? Exponentiate<kKind, false>(Scores(r), nullptr, begin, end,
                                              scale_log2_, max,
                                              layout_.weight_part)
                 : Exponentiate<kKind, true>(Scores(r), rows_.Visible(r), begin,
                                             end, scale_log2_, max,
                                             layout_.weight_part);
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
      case WeightKind::kParts:
        return WeighAs<WeightKind::kParts>(r, plain, begin, end, max);
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
              Weights(block.first, key) + first, score_stride_,
              values + first * stride * 4, stride, steps,
              Output(block.first) + column, layout_.output_stride,
              TakeAhead(steps));
        }
      });
    }
  }

  // The same of values as they lie. Few rows take them as they come from
  // memory; of more, each visit fetches its share of the next sum's.
  void AddValuesDirect() {
    const int64_t row_bytes = params_.v_head_dim * SizeOf(value_type_);
    if (rows_.rows() <= kStreamRows && rows_.num_blocks() == 1) {
      AddBlockDirect(rows_.block(0), begin_, end_, 0, params_.v_head_dim,
                     RowsAhead::Stream(row_bytes));
      return;
    }
    const int64_t visits = rows_.num_blocks() *
                           CeilDiv(params_.v_head_dim, kGeometry.panel_keys());
    const int64_t share = CeilDiv(kKeysPerSum, visits);
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t last = std::min(key + kKeysPerSum, end_);
      int64_t next = key - begin_ + kKeysPerSum;
      VisitColumns(params_.v_head_dim, [&](int64_t column, int64_t vectors) {
        for (int64_t b = 0; b < rows_.num_blocks(); ++b) {
          AddBlockDirect(rows_.block(b), key, last, column, vectors * kLanes,
                         RowsAhead::Slowly(Values(next, 0), row_bytes, visits));
          next += share;
        }
      });
    }
  }

  void AddBlockDirect(const Block& block, int64_t begin, int64_t end,
                      int64_t column, int64_t columns, const RowsAhead& ahead) {
    const KeyRange seen = Clip(block.seen, begin, end);
    if (seen.size() == 0) return;
    if (!block.plain && !ValuesAreFinite()) {
      for (int64_t key = begin; key < seen.end; key += kKeysPerSum) {
        const KeyRange of = Clip(seen, key, key + kKeysPerSum);
        AddBlockCarefully(block, key, of.begin - key, of.size(), column,
                          CeilDiv(columns, kLanes));
      }
      return;
    }
    VisitType(value_type_, [&](auto as) {
      using As = decltype(as);
      DirectValues<As>(Weights(block.first, begin), score_stride_,
                       reinterpret_cast<const typename As::Element*>(
                           Values(begin - begin_, column)),
                       value_stride_, seen.begin - begin, seen.end - begin,
                       columns, block.rows, Output(block.first) + column,
                       layout_.output_stride, ahead);
    });
  }

  // Calls `visit(column, vectors, values)` for every two vectors of columns, on
  // AMX; `values` is where those of the tile begin.
  template <class Visitor>
  void VisitAmxColumns(const Visitor& visit) const {
    for (int64_t column = 0; column < layout_.output_stride;
         column += 2 * kLanes) {
      const int64_t vectors =
          std::min<int64_t>(2, (layout_.output_stride - column) / kLanes);
      visit(column, vectors,
            PackedValues() + column * (kKeysPerSum / per_word_) * parts_);
    }
  }

  void AddValuesByAmx(const Block& block) {
    // In steps, by whole tiles: weights are 0 in what this adds.
    const int64_t first = (block.seen.begin - begin_) / kAmxKeys * kAmxSteps;
    const int64_t last = CeilDiv(block.seen.end - begin_, kAmxKeys) * kAmxSteps;
    // A value that is not finite has parts that are not.
    const bool plain = (block.plain && parts_ == 1) || ValuesAreFinite();
    VisitAmxColumns([&](int64_t column, int64_t vectors, const float* values) {
      if (plain) {
        AmxAddValues(parts_, block.rows, vectors,
                     {.first = Weights(block.first, begin_),
                      .stride = score_stride_,
                      .part_words = layout_.weight_part},
                     values, ValueWords(job_, kKeysPerSum), first, last,
                     Output(block.first) + column, layout_.output_stride);
        return;
      }
      if (parts_ > 1) {
        AddPartsCarefully(block, values, first, last, column, vectors);
        return;
      }
      for (int64_t step = first; step < last; step += kAmxSteps) {
        AddTilesCarefully(block, begin_ + step * per_word_,
                          AmxValues(values, vectors, step), column, vectors);
      }
    });
  }

  // The tiles of a step of AMX's.
  const float* AmxValues(const float* values, int64_t vectors,
                         int64_t step) const {
    constexpr int64_t kSteps = kKeysPerSum / 2;
    return values + step / kSteps * ValueWords(job_, kKeysPerSum) +
           step % kSteps / kAmxSteps * parts_ * vectors * kAmxTileWords;
  }

  // Whether no value of the tile is NaN or infinite. Looked up once a tile, by
  // those blocks that hide some of it.
  bool ValuesAreFinite() {
    if (parts_ > 1 && Packing().largest_value < kInfinityBits) return true;
    if (checked_values_) return values_finite_;
    checked_values_ = values_finite_ = true;
    if (isa_ == Isa::kAmxBf16) {
      VisitAmxColumns([&](int64_t, int64_t vectors, const float* values) {
        const int64_t steps = RoundUp(end_ - begin_, kAmxKeys) / per_word_;
        // The first parts tell.
        for (int64_t step = 0; step < steps; step += kAmxSteps) {
          values_finite_ &= AllFinite(AmxValues(values, vectors, step),
                                      vectors * kAmxSteps, true);
        }
      });
      return values_finite_;
    }
    for (int64_t key = begin_; key < end_; key += kKeysPerSum) {
      const int64_t steps =
          CeilDiv(std::min(kKeysPerSum, end_ - key), per_word_);
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

  // Which bits of a word row r sees: that of key `key` and, of pairs, the next.
  uint32_t SeenBits(const Block& block, int64_t r, int64_t key) const {
    uint32_t bits = 0;
    for (int64_t i = 0; i < per_word_; ++i) {
      const int64_t at = key - begin_ + i;
      if (at >= block.seen.end - begin_) continue;
      if (!IsVisible(rows_.Visible(r), at)) continue;
      bits |= per_word_ == 1 ? 0xFFFFFFFFU : 0xFFFFU << (16 * i);
    }
    return bits;
  }

  void AddBlockCarefully(const Block& block, int64_t key, int64_t first,
                         int64_t steps, int64_t column, int64_t vectors) const {
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto keep = [&](int64_t step) {
        return SeenBits(block, r, key + (first + step) * per_word_);
      };
      const float* from =
          reinterpret_cast<const float*>(Values(key - begin_, column)) +
          first * ValueStep(vectors);
      for (int64_t v = 0; v < vectors; ++v) {
        AddCarefully(kernels_.value[0][0], Weights(r, key) + first,
                     score_stride_, from + v * kLanes, ValueStep(vectors),
                     steps, keep, Output(r) + column + v * kLanes);
      }
    }
  }

  // The same of the tiles from `key` on.
  void AddTilesCarefully(const Block& block, int64_t key, const float* tiles,
                         int64_t column, int64_t vectors) const {
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      const auto keep = [&](int64_t step) {
        return SeenBits(block, r, key + step * per_word_);
      };
      for (int64_t v = 0; v < vectors; ++v) {
        AddCarefully(&AmxAddOneRow, Weights(r, key), score_stride_,
                     tiles + v * kAmxTileWords, kLanes, kAmxSteps, keep,
                     Output(r) + column + v * kLanes);
      }
    }
  }

  // The same with several parts, a row and a vector of columns at a time. What
  // is hidden or not finite is left out of the products, in which the rest has
  // the bits that it has anywhere; what is seen and not finite is then added as
  // f32.
  void AddPartsCarefully(const Block& block, const float* values, int64_t first,
                         int64_t last, int64_t column, int64_t vectors) const {
    constexpr int64_t kGroup = kBf16PartsOfF32 * kAmxTileWords;
    constexpr int64_t kMaxGroups = kMaxTileKeys / kAmxKeys;
    constexpr int64_t kChunk = kKeysPerSum / kAmxKeys * kGroup;
    HWY_ALIGN float masked[static_cast<size_t>(kMaxGroups * kGroup)];
    for (int64_t r = block.first; r < block.first + block.rows; ++r) {
      for (int64_t v = 0; v < vectors; ++v) {
        for (int64_t step = first; step < last; step += kAmxSteps) {
          const float* const tiles =
              AmxValues(values, vectors, step) + v * kAmxTileWords;
          for (int64_t i = 0; i < kAmxSteps; ++i) {
            const int64_t key = begin_ + step * per_word_ + i;
            const Bits seen = hn::Set(
                kU, (Sees(block, r, key) ? 0x0000FFFFU : 0U) |
                        (Sees(block, r, key + kLanes) ? 0xFFFF0000U : 0U));
            const auto word = [&](int64_t part) HWY_ATTR {
              return hn::BitCast(
                  kU, hn::Load(kF, tiles + part * vectors * kAmxTileWords +
                                       i * kLanes));
            };
            const Bits keep = hn::And(seen, FiniteHalves(word(0)));
            for (int64_t p = 0; p < kBf16PartsOfF32; ++p) {
              hn::Store(hn::BitCast(kF, hn::And(word(p), keep)), kF,
                        masked + step / kAmxSteps * kGroup + p * kAmxTileWords +
                            i * kLanes);
            }
          }
        }
        float* const output = Output(r) + column + v * kLanes;
        AmxAddValues(parts_, 1, 1,
                     {.first = Weights(r, begin_),
                      .stride = score_stride_,
                      .part_words = layout_.weight_part},
                     masked, kChunk, first, last, output,
                     layout_.output_stride);
        AddWhatIsNotFinite(block, r, column + v * kLanes, output);
      }
    }
  }

  void AddWhatIsNotFinite(const Block& block, int64_t r, int64_t column,
                          float* output) const {
    VisitType(params_.value_dtype, [&](auto as) {
      using As = decltype(as);
      for (int64_t key = block.seen.begin; key < block.seen.end; ++key) {
        if (!Sees(block, r, key)) continue;
        const auto* const row = reinterpret_cast<const typename As::Element*>(
            job_.value.RowBytes(SizeOf(params_.value_dtype), entry_.batch,
                                task_.kv_head, entry_.kv_begin + key));
        const Vec x = LoadAt<As>(row, params_.v_head_dim, column);
        const auto finite = hn::Lt(hn::Abs(x), hn::Set(kF, kInfinity));
        if (hn::AllTrue(kF, finite)) continue;
        const Vec added = hn::MulAdd(hn::Set(kF, WholeWeight(r, key)), x,
                                     hn::Load(kF, output));
        hn::Store(hn::IfThenElse(finite, hn::Load(kF, output), added), kF,
                  output);
      }
    });
  }

  bool Sees(const Block& block, int64_t r, int64_t key) const {
    if (key >= block.seen.end) return false;
    return block.plain || IsVisible(rows_.Visible(r), key - begin_);
  }

  // The sum of a weight's parts.
  float WholeWeight(int64_t r, int64_t key) const {
    const int64_t at = key - begin_;
    const int64_t word = at / kAmxKeys * kAmxSteps + at % kLanes;
    const int64_t shift = at % kAmxKeys < kLanes ? 16 : 0;
    float whole = 0;
    for (int64_t p = 0; p < parts_; ++p) {
      const auto bits = std::bit_cast<uint32_t>(
          Weights(r, begin_)[p * layout_.weight_part + word]);
      whole += std::bit_cast<float>((bits << shift) & 0xFFFF0000U);
    }
    return whole;
  }

  float* Query(int64_t r) const {
    return slot_ + layout_.query + r * layout_.q_stride;
  }
  float* Scores(int64_t r) const {
    return slot_ + layout_.scores + (r - first_scored_) * score_stride_;
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
    return job_.packed_values + ValueWords(job_, key);
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
  const float scale_log2_;        // c above
  const float slack_;             // of a row's maximum
  const uint32_t largest_query_;  // where numbers have parts
  const bool direct_;
  const Isa isa_;  // of the products
  const int64_t parts_;
  const int64_t per_word_;
  const Microkernels& kernels_;  // but on AMX
  const WeightKind weights_;
  const int64_t score_stride_;
  RowTile rows_;
  KeyRange span_;
  int64_t first_scored_ = 0;  // the row whose scores come first
  int64_t begin_ = 0;         // the tile of keys in work
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
    const Vec part = hn::Set(kF, 1 / divisor);
    int64_t c = 0;
    const auto at = [&]() HWY_ATTR {
      // A row of no weight is 0 even where its sums are not.
      return sum == 0 ? hn::Zero(kF) : hn::Mul(hn::LoadU(kF, output + c), part);
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
  if (const auto slice = PackHead(job, job.plan.Tile(task), control)) {
    return *slice;
  }
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
  static constexpr FlashKernel kKernel = {&InitSlot, &RunTile, &Merge};
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
                   std::byte* workspace, InputSource* of_source)
    : source(of_source),
      problem(of_problem),
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
  packing = reinterpret_cast<HeadPacking*>(take(plan.packing_bytes));
  if (plan.packing_bytes > 0) {
    std::fill_n(packing, params.batch * params.num_kv_heads, HeadPacking{});
  }
  partials = take(plan.partial_bytes);
  slots = workspace;
}

void FlashJob::Load(const PackTask& task) const {
  const BatchEntry entry = problem.mask().Entry(task.entry);
  const auto bytes = [&](const TensorView<const std::byte>& view, int64_t dims,
                         DataType type, const auto& load) {
    const int64_t first = entry.batch * view.strides[0] +
                          task.kv_head * view.strides[1] +
                          (entry.kv_begin + task.first) * view.strides[2];
    load(first * SizeOf(type), (task.last - task.first) * dims * SizeOf(type));
  };
  bytes(key, params.head_dim, params.key_dtype,
        [&](int64_t at, int64_t size) { source->LoadKeys(at, size); });
  bytes(value, params.v_head_dim, params.value_dtype,
        [&](int64_t at, int64_t size) { source->LoadValues(at, size); });
}

}  // namespace attnd
#endif  // HWY_ONCE
