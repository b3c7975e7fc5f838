// One AttentionStream rpc: a header and chunks in, attention, a header, chunks
// and stats out. Knows no gRPC.
#ifndef ATTND_SERVER_CALLS_STREAM_CALL_H_
#define ATTND_SERVER_CALLS_STREAM_CALL_H_

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attnd/v1/attention.pb.h"
#include "core/attention_engine.h"
#include "core/tile_scheduler.h"
#include "server/calls/attention_call.h"
#include "server/calls/message_stream.h"
#include "server/calls/service_context.h"
#include "server/calls/silence_watch.h"
#include "server/calls/stall_timer.h"
#include "server/codec/payload_source.h"
#include "server/codec/request_codec.h"
#include "server/memory/admission.h"
#include "wire/message_splitter.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::server {

// Holds what the whole call takes from the header on, before the first chunk
// is read. Computes once the client has ended its side, and answers then; the
// answer's header alone goes earlier, as soon as the call is let in.
class StreamCall final : public AttentionCall, public WatchedCall {
 public:
  using Clock = SteadyTime (*)();

  // `context` must outlive the call; `stream` until its Finish.
  StreamCall(const ServiceContext& context, MessageStream& stream,
             SteadyTime deadline, Clock clock = std::chrono::steady_clock::now)
      : AttentionCall(context, AttentionMethod::kAttention, deadline),
        stream_(stream),
        clock_(clock) {}
  ~StreamCall() override;

  // Starts to read. `pending` is the slot of a stream that waits for its first
  // message, and is given back when that message has arrived.
  void Start(Admission::Reservation pending = {});
  // What Read came to: a message or, with OnEnd, none: the client has ended its
  // side, or is gone.
  void OnMessage(absl::StatusOr<ReceivedMessage> received);
  void OnEnd();
  // The outstanding Write is over; `ok` is false where the stream is broken.
  void OnWritten(bool ok);
  // Looks at both directions. A chunk of the client counts when all of it has
  // arrived, because gRPC does not report parts of a message. Chunks of the
  // server count while they are sent.
  void EndIfSilent(std::chrono::nanoseconds timeout) override;

 private:
  // A tensor of the header.
  struct Intake {
    std::string path;
    int64_t size_bytes = 0;
    int64_t received_bytes = 0;
    bool in_chunks = false;
  };

  // Looks at a message first: admits the call if this is its first message, and
  // splits the message if it is light.
  absl::StatusOr<std::optional<SplitMessage>> Look(
      const ReceivedMessage& received);
  // Does everything else with the message, in the decode thread if the message
  // is not light. `light` is what Look returned.
  void Take(ReceivedMessage received, std::optional<SplitMessage> light);
  // With `mutex_` held.
  absl::Status TakeHeader(const ReceivedMessage& received,
                          std::optional<SplitMessage> light);
  absl::Status TakeChunk(const ReceivedMessage& received,
                         std::optional<SplitMessage> light);
  absl::Status CheckChunk(const v1::TensorChunk& chunk, int64_t size_bytes);
  absl::Status CheckComplete() const;

  // With `mutex_` held.
  absl::Status IdleStatus(std::chrono::nanoseconds timeout, bool unread) const;

  void ReadNext();
  // Where a message or the end has come; false where the call is over already.
  bool TakeTurn();
  void Fail(absl::Status status);
  void Computed(absl::Status status, const RunStats& stats);
  // Writes what is due, unless a write is outstanding.
  void Pump();
  OutgoingMessage NextAnswer();

  MessageStream& stream_;
  const Clock clock_;
  Admission::Reservation pending_;

  std::mutex mutex_;
  // Measures the wait for the client's next message; stopped while the server
  // handles one. A message may come before the Read that asked for it returns,
  // so both are counted.
  StallTimer read_timer_;
  int64_t reads_ = 0;
  int64_t turns_ = 0;
  int64_t received_bytes_ = 0;  // of tensors, in chunks
  bool writing_ = false;        // a write is outstanding
  StallTimer write_timer_;      // measures that write
  bool breaking_ = false;       // Break is being called: the stream must stay
  bool begun_ = false;          // the header was taken
  PayloadSource source_;        // of the tensors that came in it
  std::array<Intake, kTensorRoles> intakes_;
  bool busy_ = false;  // a write is outstanding, or the call is finished
  bool header_due_ = false;
  std::optional<RunStats> stats_;  // set once computed
  size_t next_tensor_ = 0;         // of the answers, and what of it is written
  size_t next_offset_ = 0;
  std::optional<absl::Status> finish_;
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_STREAM_CALL_H_
