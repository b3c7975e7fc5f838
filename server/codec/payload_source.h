// Copies payloads from a received message, or from shared memory, to the memory
// where kernels read them.
#ifndef ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_
#define ATTND_SERVER_CODEC_PAYLOAD_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/input_source.h"
#include "wire/received_message.h"

namespace attnd::server {

// A list of copies to make. One thread fills it, and then the workers of a job
// make the copies in parallel.
class PayloadSource final : public InputSource {
 public:
  // Copies the bytes of `range` in the message to `to`.
  void Add(const PayloadRange& range, std::byte* to);
  // Copies the bytes at `from`, which must stay there until the job is over.
  void AddMemory(const std::byte* from, int64_t size_bytes, std::byte* to);
  // Copies the keys and the values, if each is a tensor of its own. Call it
  // last.
  void AddKeysAndValues(const PayloadRange& keys, std::byte* keys_to,
                        const PayloadRange& values, std::byte* values_to);

  bool empty() const { return pieces_.empty(); }

  // Keeps the message that holds all ranges until Clear, or drops it if there
  // are no ranges.
  void Keep(ReceivedMessage received);
  void Clear();

  int64_t pieces() const override;
  void LoadPiece(int64_t piece) override;
  int64_t pieces_before_keys() const override;
  void LoadKeys(int64_t offset_bytes, int64_t size_bytes) override;
  void LoadValues(int64_t offset_bytes, int64_t size_bytes) override;

 private:
  // A copy to make, from the message or, if `memory` is set, from memory.
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
