// Payloads of a received message, or in shared memory, on their way to where
// kernels read them. Knows offsets and addresses, not what lies there.
#ifndef ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_
#define ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/input_source.h"
#include "wire/received_message.h"

namespace attnd::server {

// Filled by one thread, then read by many.
class PayloadSource final : public InputSource {
 public:
  // What `range` covers of the message goes to `to`.
  void Add(const PayloadRange& range, std::byte* to);
  // So does what lies at `from`, until the job is over.
  void AddMemory(const std::byte* from, int64_t size_bytes, std::byte* to);
  // The same of the keys and the values, where both are tensors of their own.
  // Nothing is added after them.
  void AddKeysAndValues(const PayloadRange& keys, std::byte* keys_to,
                        const PayloadRange& values, std::byte* values_to);

  bool empty() const { return pieces_.empty(); }

  // Keeps the message in which all ranges lie until Clear, or drops it where
  // there is none.
  void Keep(ReceivedMessage received);
  void Clear();

  int64_t pieces() const override;
  void LoadPiece(int64_t piece) override;
  int64_t pieces_before_keys() const override;
  void LoadKeys(int64_t offset_bytes, int64_t size_bytes) override;
  void LoadValues(int64_t offset_bytes, int64_t size_bytes) override;

 private:
  // What goes to an address, from an offset in the message or in memory.
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
  size_t before_keys_ = 0;  // pieces
  Part keys_;
  Part values_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_
