// Handles one call of AttentionStream: receives a header and chunks, computes,
// and sends a header, chunks and stats. Does not use gRPC.
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

// One call of AttentionStream. The first message has the header, which
// describes all tensors. Once it has arrived, and before the first chunk is
// read, the call reserves the memory that it will need and sends the header of
// the answer. When the client has ended its side of the stream, the call
// computes and sends the rest of the answer. Its callbacks (OnMessage, OnEnd,
// OnWritten) may run in different threads.
class StreamCall final : public AttentionCall, public WatchedCall {
 public:
  using Clock = SteadyTime (*)();

  // `context` must outlive the call. `stream` must exist until this call has
  // called its Finish. `clock` is for tests. `caller` is the number of who
  // calls (Admission::Admit).
  StreamCall(const ServiceContext& context, MessageStream& stream,
             SteadyTime deadline, Clock clock = std::chrono::steady_clock::now,
             uint64_t caller = 0)
      : AttentionCall(context, AttentionMethod::kAttention, deadline, caller),
        stream_(stream),
        clock_(clock) {}
  ~StreamCall() override;

  // Starts to read. `pending` is one of the slots that limit how many streams
  // may wait for their first message. The call gives it back when that message
  // has arrived.
  void Start(Admission::Reservation pending = {});
  // Call this when MessageStream::Read has received a message or failed.
  void OnMessage(absl::StatusOr<ReceivedMessage> received);
  // Call this when MessageStream::Read found no further message: the client has
  // ended its side of the stream, or is gone.
  void OnEnd();
  // Call this when the message passed to MessageSink::Write has been sent. `ok`
  // is false if the stream is broken.
  void OnWritten(bool ok);
  // Ends the call if the client sends too little or reads too little. A chunk
  // from the client counts when all of it has arrived, because gRPC does not
  // report parts of a message. A chunk to the client already counts while it is
  // being sent.
  void EndIfSilent(std::chrono::nanoseconds timeout) override;

 private:
  // How much of a tensor that the header describes has arrived.
  struct Intake {
    std::string path;  // in errors; empty if the header lacks the tensor
    int64_t size_bytes = 0;
    int64_t received_bytes = 0;
    bool in_chunks = false;
  };

  // Runs first for each message. Reserves a slot for the call if this is its
  // first message. Splits the message if it is light (wire/message_splitter.h),
  // and otherwise returns nullopt.
  absl::StatusOr<std::optional<SplitMessage>> SplitFirst(
      const ReceivedMessage& received);
  // Handles a message after SplitFirst, which returned `light`. Runs in the
  // decode thread if the message is not light.
  void Handle(ReceivedMessage received, std::optional<SplitMessage> light);

  // The caller of the next five functions must hold `mutex_`.
  absl::Status TakeHeader(const ReceivedMessage& received,
                          std::optional<SplitMessage> light);
  absl::Status TakeChunk(const ReceivedMessage& received,
                         std::optional<SplitMessage> light);
  absl::Status CheckChunk(const v1::TensorChunk& chunk, int64_t size_bytes);
  // Checks that the header and all chunks have arrived.
  absl::Status CheckComplete() const;
  // Returns the error for a client that has sent too little for `timeout`, or,
  // if `unread`, that has read too little of the answer.
  absl::Status IdleStatus(std::chrono::nanoseconds timeout, bool unread) const;

  void ReadNext();
  // Records that a Read has ended. Returns false if the call is already over.
  bool TakeTurn();
  void Fail(absl::Status status);
  void Computed(absl::Status status, const RunStats& stats);
  // Writes the next message that is ready, or finishes the stream. Does nothing
  // while an earlier message is still being sent.
  void Pump();
  // Returns the next chunk of the answer or, after the last chunk, the stats.
  // The caller must hold `mutex_`.
  OutgoingMessage NextAnswer();

  MessageStream& stream_;
  const Clock clock_;
  Admission::Reservation pending_;

  std::mutex mutex_;
  // Measures how long the server waits for the next message of the client. It
  // does not run while the server handles a message. OnMessage may run before
  // the Read that it belongs to has returned. The two counters below show that,
  // and the timer then does not start.
  StallTimer read_timer_;
  int64_t reads_ = 0;           // how many times Read has returned
  int64_t turns_ = 0;           // how many Reads OnMessage or OnEnd has ended
  int64_t received_bytes_ = 0;  // data of all chunks together
  bool writing_ = false;        // a message is being sent
  StallTimer write_timer_;      // measures how long it takes to send a message
  // MessageSink::Break is running. Finish has to wait, because the stream may
  // be destroyed after it.
  bool breaking_ = false;
  bool begun_ = false;    // the header has been handled
  PayloadSource source_;  // the tensors whose data are in the header
  std::array<Intake, kTensorRoles> intakes_;
  bool busy_ = false;        // a message is being sent, or the call is over
  bool header_due_ = false;  // the answer's header can be written
  bool computed_ = false;    // the chunks of the answer can be written
  // The next chunk of the answer is of tensor number next_tensor_ of answers(),
  // from byte next_offset_ on.
  size_t next_tensor_ = 0;
  size_t next_offset_ = 0;
  std::optional<absl::Status> finish_;  // set when the call is over
};

}  // namespace attnd::server

#endif  // ATTND_SERVER_CALLS_STREAM_CALL_H_
