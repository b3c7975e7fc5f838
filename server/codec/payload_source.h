// Copies the elements of input tensors from a received message, or from shared
// memory, to the memory from which kernels read them.
#ifndef ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_
#define ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/input_source.h"
#include "wire/received_message.h"

namespace attnd::server {

// A list of copies to make. One thread fills the list. Then the workers of a
// job make the copies in parallel, through the functions of InputSource.
class PayloadSource final : public InputSource {
 public:
  // Adds a copy to `to` of the bytes at `range` in the message that Keep gets.
  void Add(const PayloadRange& range, std::byte* to);
  // Adds a copy of `size_bytes` bytes from `from` to `to`. The bytes at `from`
  // must stay valid until the job is over.
  void AddMemory(const std::byte* from, int64_t size_bytes, std::byte* to);
  // Adds copies of the keys and the values from the message, which workers load
  // right before they pack them. Call it after all other Add functions, and
  // only if key and value are different tensors.
  void AddKeysAndValues(const PayloadRange& keys, std::byte* keys_to,
                        const PayloadRange& values, std::byte* values_to);

  bool empty() const { return pieces_.empty(); }

  // Keeps `received`, the message from which ranges are copied, until Clear.
  // Frees it at once if no copy needs it.
  void Keep(ReceivedMessage received);
  // Removes all copies and frees the message.
  void Clear();

  int64_t pieces() const override;
  void LoadPiece(int64_t piece) override;
  int64_t pieces_before_keys() const override;
  void LoadKeys(int64_t offset_bytes, int64_t size_bytes) override;
  void LoadValues(int64_t offset_bytes, int64_t size_bytes) override;

 private:
  // A copy to make: from `memory` if that is set, and otherwise from the
  // message. `range` counts from the start of either.
  struct Part {
    PayloadRange range;
    std::byte* to = nullptr;
    const std::byte* memory = nullptr;
  };

  void AddInPieces(const Part& part);
  void Load(const Part& part, int64_t offset_bytes, int64_t size_bytes) const;

  ReceivedMessage received_;
  bool needs_message_ = false;
  std::vector<Part> pieces_;
  size_t before_keys_ = 0;  // how many pieces come before those of the keys
  Part keys_;
  Part values_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_
