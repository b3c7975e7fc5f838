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
#include "core/kernels/flash_attention.h"
#include "core/kernels/pack-inl.h"
#include "core/kernels/pack_tiles-inl.h"
#include "core/kernels/vectors-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace attnd {
namespace HWY_NAMESPACE {

inline int64_t PanelWords(const FlashJob& job) {
  return kPanelKeys * RowWords(job.plan.isa, job.params.head_dim) *
         job.plan.parts;
}

// Both return the largest magnitude where the plan wants parts, else 0.
inline uint32_t PackKeys(const FlashJob& job, const std::byte* from,
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

inline uint32_t PackValues(const FlashJob& job, const std::byte* from,
                           int64_t keys, float* to) {
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
inline int64_t ValueWords(const FlashJob& job, int64_t keys) {
  return keys / ElementsPerWord(job.plan.isa) *
         RoundToLine(job.params.v_head_dim) * job.plan.parts;
}

// Where the panel and the values that begin with `key` are.
inline float* PackedPanel(const FlashJob& job, const TileTask& task,
                          int64_t key) {
  const int64_t first = job.plan.FirstKey(task.entry, task.kv_head);
  return job.packed_keys + (first + key) / kPanelKeys * PanelWords(job);
}
inline float* PackedValues(const FlashJob& job, const TileTask& task,
                           int64_t key) {
  const int64_t first = job.plan.FirstKey(task.entry, task.kv_head);
  return job.packed_values + ValueWords(job, first + key);
}

inline void RaiseTo(uint32_t& largest, uint32_t value) {
  const std::atomic_ref shared(largest);
  uint32_t old = shared.load(std::memory_order_relaxed);
  while (old < value &&
         !shared.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
}

inline void Pack(const FlashJob& job, const PackTask& part,
                 HeadPacking& packing) {
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
inline std::optional<TileJob::Slice> PackHead(const FlashJob& job,
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

}  // namespace HWY_NAMESPACE
}  // namespace attnd
HWY_AFTER_NAMESPACE();

#endif
