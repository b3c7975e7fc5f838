// Where the rows of K and V lie in memory. Kernels and the reference that tests
// compare them with ask a KvSource for rows. So this is the only place that
// turns the number of a key into an address.
#ifndef ATTND_CORE_KV_ROWS_H_
#define ATTND_CORE_KV_ROWS_H_

#include <cstddef>
#include <cstdint>

#include "core/attention_params.h"
#include "core/tensor_view.h"
#include "core/visibility.h"

namespace attnd {

// Rows of K or V that belong to consecutive keys of one kv head and lie at
// equal distances in memory. The elements of a row follow one another and are
// aligned to their size.
struct KvRows {
  const std::byte* first;  // the row of the key that was asked for
  int64_t count;           // how many rows lie here, from that key on
  int64_t stride_bytes;    // from the start of a row to the start of the next
  DataType type;           // of the elements
};

// Gives access to the K or the V of a problem, which lies in a dense tensor
// that this class does not own. If another kind of storage is added, pages for
// example, only this class has to know it. Immutable and safe to share between
// threads.
class KvSource {
 public:
  // Rows() returns at least the rows up to the next multiple of this many keys,
  // counted from key 0 of the entry, or up to the end of the entry. Kernels
  // rely on this: the keys of a tile or of a packing task never cross such a
  // multiple, so kernels need no loop over several KvRows. A dense tensor has
  // all rows of an entry in one place. Pages must hold a multiple of this many
  // keys.
  static constexpr int64_t kAlignedKeys = 512;

  // `tensor` has the shape [batch, num_kv_heads, kv_len, dim] and elements of
  // `type`.
  KvSource(const TensorView<const std::byte>& tensor, DataType type)
      : tensor_(tensor), type_(type) {}

  // Returns the rows of kv head `kv_head` of `entry` from key `key` on.
  // Requires 0 <= key < entry.kv_extent. The caller may read only the bytes of
  // these rows, but may prefetch beyond them.
  KvRows Rows(const BatchEntry& entry, int64_t kv_head, int64_t key) const {
    const int64_t element_bytes = SizeOf(type_);
    return {.first = tensor_.RowBytes(element_bytes, entry.batch, kv_head,
                                      entry.kv_begin + key),
            .count = entry.kv_extent - key,
            .stride_bytes = tensor_.strides[2] * element_bytes,
            .type = type_};
  }

  // Returns the start of the dense tensor.
  const std::byte* data() const { return tensor_.data; }

 private:
  TensorView<const std::byte> tensor_;
  DataType type_;
};

}  // namespace attnd

#endif  // ATTND_CORE_KV_ROWS_H_
