// Packing the keys and values of one kv head, by the tiles that read them:
// which layout, where in the job's memory, and who does which piece. For
// inclusion by kernels only, once a target.
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

#include "core/checked_math.h"
#include "core/kernels/forward_job.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/vectors-inl.h"
#include "core/workspace.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

inline int64_t PanelWords(const ForwardJob& job) {
  return kPanelKeys * RowWords(job.plan.isa, job.params.head_dim) *
         job.plan.parts;
}

// Returns the largest magnitude where the plan wants parts, else 0.
inline uint32_t PackKeys(const ForwardJob& job, const std::byte* from,
                         int64_t keys, float* to) {
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

// Returns whether any value is to stay out of products of several parts.
inline bool PackValues(const ForwardJob& job, const std::byte* from,
                       int64_t keys, float* to) {
  bool odd = false;
  const int64_t stride = job.value.strides[2];
  const int64_t dims = job.params.v_head_dim;
  VisitType(job.params.value_dtype, [&](auto as) {
    using As = decltype(as);
    const auto* rows = reinterpret_cast<const typename As::Element*>(from);
    if (job.plan.parts > 1) {
      odd = PackValueTiles<kBf16PartsOfF32, As>(rows, stride, keys, dims, to);
    } else if (job.plan.isa == Isa::kAmxBf16) {
      PackValueTiles<1, As>(rows, stride, keys, dims, to);
    } else if (job.plan.isa == Isa::kAvx512Bf16) {
      PackValuePairChunk<As>(rows, stride, keys, dims, to);
    } else {
      PackValueChunk<As>(rows, stride, keys, dims, job.plan.bf16_products, to);
    }
  });
  return odd;
}

// Words of the values of `keys` keys, whole sums.
inline int64_t ValueWords(const ForwardJob& job, int64_t keys) {
  return keys / ElementsPerWord(job.plan.isa) *
         RoundToLine(job.params.v_head_dim) * job.plan.parts;
}

// One packed kv head, as the tiles see it that read it. Places for heads are
// few and go from one to the next (KernelPlan::PackedHeads), so that they stay
// in the caches.
class PackedHead {
 public:
  // Of a tile in progress. The head's first tile finds it a place.
  PackedHead(const ForwardJob& job, const TileTask& task)
      : job_(job), task_(task), packing_(job.Packing(task)) {
    std::byte* const place = job.PackedHead(FindPlace());
    keys_ = reinterpret_cast<float*>(place + Workspace::kAlignment);
    values_ = keys_ + job.plan.packed_keys_bytes / 4;
  }

  // Packs what is left of it, and waits for the pieces that other tiles are at.
  // Right before the tiles that read it, so that it is still in the caches
  // then. kDone where the job should stop; nothing when all is packed.
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

  // A tile of the head is done. After the last one the place is free.
  static void Leave(const ForwardJob& job, const TileTask& task) {
    HeadPacking& packing = job.Packing(task);
    const std::atomic_ref done(packing.done);
    // Whoever takes the place next must not write before all have read.
    if (done.fetch_add(1, std::memory_order_acq_rel) + 1 ==
        job.plan.TilesOfHead(task.entry)) {
      Taken(job, packing.place - 1).store(0, std::memory_order_release);
    }
  }

  // Where the panel that begins with `key` is, and the values of the sum that
  // does.
  const float* Panel(int64_t key) const {
    return keys_ + key / kPanelKeys * PanelWords(job_);
  }
  const float* Values(int64_t key) const {
    return values_ + ValueWords(job_, key);
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
      // The lowest first: it was used last. There are enough, but one may come
      // free behind this search.
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
    const BatchEntry entry = job_.problem.mask().Entry(part.entry);
    const auto row = [&](const TensorView<const std::byte>& tensor,
                         DataType type, int64_t key) {
      return tensor.RowBytes(SizeOf(type), entry.batch, part.kv_head,
                             entry.kv_begin + key);
    };
    uint32_t largest_key = 0;
    bool odd_values = false;
    for (int64_t key = part.first; key < part.last; key += kPanelKeys) {
      const uint32_t of_panel =
          PackKeys(job_, row(job_.key, params.key_dtype, key),
                   std::min(kPanelKeys, part.last - key),
                   keys_ + key / kPanelKeys * PanelWords(job_));
      largest_key = std::max(largest_key, of_panel);
    }
    for (int64_t key = part.first; key < part.last; key += kKeysPerSum) {
      odd_values |= PackValues(job_, row(job_.value, params.value_dtype, key),
                               std::min(kKeysPerSum, part.last - key),
                               values_ + ValueWords(job_, key));
    }
    RaiseTo(packing_.largest_key, largest_key);
    if (odd_values) RaiseTo(packing_.odd_values, 1);
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
