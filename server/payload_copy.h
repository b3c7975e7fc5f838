// Brings the payloads of a received message to where kernels read them, by all
// workers: one thread copies slower than the sockets deliver. Knows offsets and
// addresses, not what lies there.
#ifndef ATTND_SERVER_PAYLOAD_COPY_H_
#define ATTND_SERVER_PAYLOAD_COPY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tile_scheduler.h"
#include "server/payload_splitter.h"
#include "server/wire_message.h"

namespace attnd::server {

// Not thread-safe but for what the scheduler does with a job.
class PayloadCopy final : public TileJob {
 public:
  // Up to so many bytes are copied in less time than workers take to wake.
  static constexpr int64_t kMaxHereBytes = int64_t{1} << 20;

  // What `range` covers of the message goes to `to`.
  void Add(const PayloadRange& range, std::byte* to);

  // Either copies all from `received`, in this thread, and is empty then,
  void RunHere(const ReceivedMessage& received);
  // or keeps it for a run as a job, until Clear. Takes the first way where that
  // is quicker.
  void Begin(ReceivedMessage received);

  bool empty() const { return pieces_.empty(); }
  void Clear();

  std::vector<Phase> Phases() const override;
  Slice Run(int64_t phase, int64_t task, int64_t slot,
            SliceControl& control) override;

 private:
  struct Piece {
    PayloadRange range;
    std::byte* to;
  };

  ReceivedMessage received_;
  std::vector<Piece> pieces_;
  int64_t size_bytes_ = 0;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_PAYLOAD_COPY_H_
