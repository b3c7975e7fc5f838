// An attention call as the messages of AttentionStream: header and chunks out,
// header, chunks and stats in. Knows protobuf, not gRPC.
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

class AttentionExchange final : public MessageExchange {
 public:
  // `asked` holds what `outputs` ask for. Messages are no larger than
  // `max_message_bytes`. Elements without an owner and outputs are borrowed
  // until the call is over.
  AttentionExchange(const AttentionInputs& inputs,
                    const AttentionOptions& options,
                    const v1::AttentionOptions& asked,
                    const AttentionOutputs& outputs, int64_t max_message_bytes);

  std::optional<OutgoingMessage> Next() override;
  bool OnResponse(const ReceivedMessage& message) override;
  bool Restart() override;

  // What came of a call that ended with `status`.
  absl::StatusOr<AttentionReply> Reply(const absl::Status& status);

 private:
  struct Source {
    v1::TensorRole role;
    ConstElements data;
  };
  // A tensor of the answer: where its elements go, and how many came.
  struct Target {
    absl::string_view name;
    v1::TensorRole role;
    Elements elements;
    std::vector<int64_t> shape;
    v1::Tensor header = {};
    uint64_t received_bytes = 0;
  };

  // Whether elements of the answer lie where inputs did, which therefore cannot
  // be sent again.
  bool HasOverwrittenInputs() const;
  absl::Status Take(const ReceivedMessage& message);
  absl::Status TakeHeader(const v1::AttentionResponse& header);
  // Copies the data of `chunk`, which is at `data` in `message`, to the
  // outputs.
  absl::Status TakeChunk(const v1::TensorChunk& chunk, const PayloadRange& data,
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
  absl::Status refusal_;  // why OnResponse wants no more
};

}  // namespace attnd::client

#endif  // ATTND_CLIENT_ATTENTION_EXCHANGE_H_
