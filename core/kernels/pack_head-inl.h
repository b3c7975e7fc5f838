// Packs K and V of one kv head. There is no task for this: the tiles that read
// the head pack it. This file decides the format, the place in the job's
// memory, and which tile packs which piece.
#if defined(ATTND_CORE_KERNELS_PACK_HEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTND_CORE_KERNELS_PACK_HEAD_INL_H_
#undef ATTND_CORE_KERNELS_PACK_HEAD_INL_H_
#else
#define ATTND_CORE_KERNELS_PACK_HEAD_INL_H_
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <thread>

#include "base/checked_math.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/microkernels-inl.h"
#include "core/kernels/microkernels.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/row_tile-inl.h"
#include "core/kernels/vectors-inl.h"
#include "core/workspace.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

// How tiles of one kind pack queries, keys and values, and which microkernels
// multiply them. This general template is the format of f32, and of f32 that is
// rounded to bf16.
template <TileKind kKind>
struct Format {
  static constexpr bool kRounds =
      TraitsOf(kKind).operand == Operand::kRoundedF32;

  template <class As>
  static void PackQuery(As as, const typename As::Element* from, int64_t dims,
                        int64_t stride, float factor, float* to) {
    ConvertRow(as, from, dims, stride, factor, kRounds, to);
  }
  // Pack the keys of one panel, and up to kKeysPerSum rows of V. For kinds that
  // split numbers into bf16 terms, PackKeys returns the largest magnitude of
  // their elements, as the bits of a float, and PackValues returns whether V
  // has a number that must not be split. For others both return 0.
  template <class As>
  static uint32_t PackKeys(RowReader<As> rows, int64_t keys, int64_t dims,
                           float* to) {
    PackPanel(rows, keys, dims, kRounds, to);
    return 0;
  }
  template <class As>
  static bool PackValues(RowReader<As> rows, int64_t keys, int64_t dims,
                         float* to) {
    PackValueChunk(rows, keys, dims, kRounds, to);
    return false;
  }
  // Returns whether `count` SIMD vectors of packed values are finite.
  static bool IsFinite(const float* words, int64_t count) {
    return AllFinite(words, count, false);
  }
  static const Microkernels& Kernels() { return kMicrokernels; }
};

// The format of panels of bf16 pairs.
template <>
struct Format<TileKind::kPanelBf16> {
  template <class As>
  static void PackQuery(As as, const typename As::Element* from, int64_t dims,
                        int64_t /*stride*/, float factor, float* to) {
    ConvertRowToBf16(as, from, dims, 2 * RowWords(TileKind::kPanelBf16, dims),
                     factor, reinterpret_cast<uint16_t*>(to));
  }
  template <class As>
  static uint32_t PackKeys(RowReader<As> rows, int64_t keys, int64_t dims,
                           float* to) {
    PackPanelAsPairs(rows, keys, dims, to);
    return 0;
  }
  template <class As>
  static bool PackValues(RowReader<As> rows, int64_t keys, int64_t dims,
                         float* to) {
    PackValuePairChunk(rows, keys, dims, to);
    return false;
  }
  static bool IsFinite(const float* words, int64_t count) {
    return AllFinite(words, count, true);
  }
  static const Microkernels& Kernels() { return Bf16DotMicrokernels(); }
};

// The format of AMX kinds. Their tile classes pack the queries themselves.
template <TileKind kKind>
requires(TraitsOf(kKind).block > 0) struct Format<kKind> {
  static constexpr int kTerms = static_cast<int>(TraitsOf(kKind).terms);

  template <class As>
  static uint32_t PackKeys(RowReader<As> rows, int64_t keys, int64_t dims,
                           float* to) {
    return LargestOf(PackKeyTiles<kTerms>(rows, keys, dims, to));
  }
  template <class As>
  static bool PackValues(RowReader<As> rows, int64_t keys, int64_t dims,
                         float* to) {
    return PackValueTiles<kTerms>(rows, keys, dims, to);
  }
};

// Returns the number of words in a packed panel of keys.
template <TileKind kKind>
int64_t PanelWords(const ForwardJob& job) {
  return kPanelKeys * RowWords(kKind, job.params.head_dim);
}

// Returns the number of words that V takes when it is packed for `keys` keys, a
// multiple of kKeysPerSum.
template <TileKind kKind>
int64_t ValueWords(const ForwardJob& job, int64_t keys) {
  constexpr TileTraits kTraits = TraitsOf(kKind);
  return keys / kTraits.elements_per_word * RoundToLine(job.params.v_head_dim) *
         kTraits.terms;
}

// The packed K and V of one kv head, as one of its tiles uses them. The job has
// memory for only a few packed heads at a time (KernelPlan::PackedHeads). That
// memory is used again for one head after the other, so it stays in the caches.
template <TileKind kKind>
class PackedHead {
 public:
  // Make one when a tile starts, or continues after a yield. For the first tile
  // of a kv head, this finds a free place in the job's memory for the packed
  // head.
  PackedHead(const ForwardJob& job, const TileTask& task)
      : job_(job), task_(task), packing_(job.Packing(task)) {
    std::byte* const place = job.PackedHead(FindPlace());
    keys_ = reinterpret_cast<float*>(place + Workspace::kAlignment);
    values_ = keys_ + job.plan.packed_keys_bytes / 4;
  }

  // Packs the pieces of this kv head that no other tile has claimed, then waits
  // for those that others are packing. Call this just before the tile reads
  // them, so that they are still in the caches. Returns nullopt once everything
  // is packed, kDone if the job should stop, and kYield if the tile should let
  // another job run.
  std::optional<TileJob::Slice> Pack(SliceControl& control) const {
    const auto pieces = static_cast<uint32_t>(job_.plan.PackTasks(task_.entry));
    const std::atomic_ref claimed(packing_.claimed);
    const std::atomic_ref packed(packing_.packed);
    while (packed.load(std::memory_order_acquire) < pieces) {
      uint32_t piece = claimed.load(std::memory_order_relaxed);
      if (piece < pieces && claimed.compare_exchange_weak(
                                piece, piece + 1, std::memory_order_relaxed)) {
        const PackTask task = job_.plan.Pack(task_.entry, task_.kv_head, piece);
        if (job_.loads_with_packing) job_.Load(task);
        PackPiece(task);
        packed.fetch_add(1, std::memory_order_release);
      } else if (piece >= pieces) {
        std::this_thread::yield();
      }
      if (control.ShouldStop()) return TileJob::Slice::kDone;
      if (control.ShouldYield()) return TileJob::Slice::kYield;
    }
    return std::nullopt;
  }

  // Call this when a tile no longer needs its packed kv head. The last tile of
  // the head frees its place in memory.
  static void Leave(const ForwardJob& job, const TileTask& task) {
    HeadPacking& packing = job.Packing(task);
    const std::atomic_ref done(packing.done);
    // The kv head that gets this place next must not write to it before all
    // tiles of this head have read it.
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 ==
        job.plan.TilesOfHead(task.entry)) {
      Taken(job, packing.place - 1).store(0, std::memory_order_release);
    }
  }

  // Return the packed panel of keys that begins with `key`, and the packed rows
  // of V from `key` on. `key` is a multiple of kPanelKeys, or of kKeysPerSum.
  const float* Panel(int64_t key) const {
    return keys_ + key / kPanelKeys * PanelWords<kKind>(job_);
  }
  const float* Values(int64_t key) const {
    return values_ + ValueWords<kKind>(job_, key);
  }

 private:
  static std::atomic_ref<uint32_t> Taken(const ForwardJob& job, int64_t place) {
    return std::atomic_ref(*reinterpret_cast<uint32_t*>(job.PackedHead(place)));
  }

  int64_t FindPlace() const {
    constexpr uint32_t kLooking = 0xFFFFFFFF;
    const std::atomic_ref place(packing_.place);
    uint32_t at = place.load(std::memory_order_acquire);
    if (at == 0 && place.compare_exchange_strong(at, kLooking)) {
      // Tries the lowest place first, because it is most likely in the caches.
      // There are enough places for all heads in progress, but a place may
      // become free after this loop has passed it, so the loop starts again.
      at = 0;
      uint32_t taken = 0;
      while (!Taken(job_, at).compare_exchange_strong(taken, 1)) {
        at = (at + 1) % static_cast<uint32_t>(job_.packed_heads);
        taken = 0;
      }
      place.store(at + 1, std::memory_order_release);
      return at;
    }
    while (at == kLooking) {
      std::this_thread::yield();
      at = place.load(std::memory_order_acquire);
    }
    return at - 1;
  }

  void PackPiece(const PackTask& part) const {
    const AttentionParams& params = job_.params;
    const BatchEntry entry = job_.problem.visibility().Entry(part.entry);
    uint32_t largest_key = 0;
    bool unsplittable = false;
    for (int64_t key = part.first; key < part.last; key += kPanelKeys) {
      VisitReader(job_.key.Rows(entry, part.kv_head, key), [&](auto rows) {
        const uint32_t of_panel = Format<kKind>::PackKeys(
            rows, std::min(kPanelKeys, part.last - key), params.head_dim,
            keys_ + key / kPanelKeys * PanelWords<kKind>(job_));
        largest_key = std::max(largest_key, of_panel);
      });
    }
    for (int64_t key = part.first; key < part.last; key += kKeysPerSum) {
      VisitReader(job_.value.Rows(entry, part.kv_head, key), [&](auto rows) {
        unsplittable |= Format<kKind>::PackValues(
            rows, std::min(kKeysPerSum, part.last - key), params.v_head_dim,
            values_ + ValueWords<kKind>(job_, key));
      });
    }
    RaiseTo(packing_.largest_key, largest_key);
    if (unsplittable) RaiseTo(packing_.unsplittable_values, 1);
  }

  static void RaiseTo(uint32_t& largest, uint32_t value) {
    const std::atomic_ref shared(largest);
    uint32_t old = shared.load(std::memory_order_relaxed);
    while (old < value && !shared.compare_exchange_weak(
                              old, value, std::memory_order_relaxed)) {
    }
  }

  const ForwardJob& job_;
  const TileTask& task_;
  HeadPacking& packing_;
  float* keys_;
  float* values_;
};

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
