// Streams an attention call: turns its request into the messages of
// AttentionStream (a header and chunks), and reads the messages of the answer
// (a header, chunks and stats). Uses protobuf, but not gRPC.
#ifndef ATTND_CLIENT_ATTENTION_EXCHANGE_H_
#define ATTND_CLIENT_ATTENTION_EXCHANGE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attnd/v1/attention.pb.h"
#include "client/rpc_channel.h"
#include "client/types.h"
#include "wire/outgoing_message.h"
#include "wire/received_message.h"

namespace attnd::client {

// The messages of one streamed call. Pass an object to
// RetryingChannel::Exchange, which calls Next() and OnResponse(). Then call
// Reply() for the result. Not thread-safe.
class AttentionExchange final : public MessageExchange {
 public:
  // `requested_outputs` must be OptionsFrom(outputs), the options that ask the
  // server for these tensors. No message of the request is larger than
  // `max_message_bytes`. The outputs, and the input elements that have no
  // owner, must stay valid until the call is over.
  AttentionExchange(const AttentionInputs& inputs,
                    const AttentionOptions& options,
                    const v1::AttentionOptions& requested_outputs,
                    const AttentionOutputs& outputs, int64_t max_message_bytes);

  std::optional<OutgoingMessage> Next() override;
  bool OnResponse(const ReceivedMessage& message) override;
  bool Restart() override;

  // Returns the result of a call for which gRPC reported `status`. Returns
  // INTERNAL if the answer was not complete or not valid.
  absl::StatusOr<AttentionReply> Reply(const absl::Status& status);

 private:
  // An input tensor.
  struct Source {
    v1::TensorRole role;
    ConstElements data;
  };
  // A tensor of the answer: where its elements go, and how many have arrived.
  struct Target {
    absl::string_view name;
    v1::TensorRole role;
    Elements elements;
    std::vector<int64_t> shape;
    v1::Tensor header = {};
    uint64_t received_bytes = 0;
  };

  // Returns whether the answer has overwritten elements of the inputs. If it
  // has, the inputs cannot be sent again.
  bool HasOverwrittenInputs() const;
  absl::Status ReadMessage(const ReceivedMessage& message);
  absl::Status ReadHeader(const v1::AttentionResponse& header);
  // Copies the data of `chunk` to its output and counts it as received. The
  // data is at `data` in `message`. Returns INTERNAL if the chunk does not
  // continue its tensor.
  absl::Status ReadChunk(const v1::TensorChunk& chunk, const PayloadRange& data,
                         const ReceivedMessage& message);

  OutgoingMessage header_;
  bool header_sent_ = false;
  std::vector<Source> sources_;
  size_t next_source_ = 0;
  size_t next_offset_ = 0;
  size_t max_chunk_bytes_ = 0;

  std::vector<Target> targets_;
  bool has_header_ = false;
  std::optional<ExecutionStats> stats_;
  absl::Status answer_error_;  // why OnResponse rejected a message
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ATTENTION_EXCHANGE_H_
