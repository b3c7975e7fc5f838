#include "server/plain_calls.h"

#include <string>

#include "attnd/v1/attention.pb.h"
#include "server/estimate.h"
#include "server/version.h"

namespace attnd::server {
namespace {

// Admits, parses and hands the request to `handle`.
template <typename Request, typename Handle>
absl::StatusOr<ResponsePieces> Answer(const ServiceContext& context,
                                      const ReceivedMessage& received,
                                      const Handle& handle) {
  absl::StatusOr<Admission::Reservation> reservation =
      context.admission.Admit(received.size_bytes());
  if (!reservation.ok()) return reservation.status();
  Request request;
  const absl::StatusOr<SplitMessage> split =
      ParseMessage(received, *reservation, request);
  if (!split.ok()) return split.status();
  auto response = handle(request);
  if (!response.ok()) return response.status();
  return SerializePieces(*response);
}

}  // namespace

absl::StatusOr<ResponsePieces> AnswerMemoryEstimate(
    const ServiceContext& context, const ReceivedMessage& received) {
  return Answer<v1::MemoryEstimateRequest>(
      context, received, [&](const v1::MemoryEstimateRequest& request) {
        return EstimateMemory(request, context);
      });
}

absl::StatusOr<ResponsePieces> AnswerServerInfo(
    const ServiceContext& context, const ReceivedMessage& received) {
  return Answer<v1::GetServerInfoRequest>(
      context, received,
      [&](const v1::GetServerInfoRequest&)
          -> absl::StatusOr<v1::GetServerInfoResponse> {
        v1::GetServerInfoResponse info;
        info.set_version(kVersion);
        info.set_isa(std::string(IsaName(context.engine.machine().isa)));
        info.set_threads(context.engine.threads());
        info.set_max_receive_message_bytes(context.max_message_bytes);
        info.set_max_send_message_bytes(context.max_message_bytes);
        info.set_memory_budget_bytes(context.admission.budget_bytes());
        info.set_max_benchmark_vectors(context.max_benchmark_vectors);
        info.add_features("backward");
        info.add_features("stream");
        if (context.regions != nullptr) info.add_features("shared_memory");
        const Isa isa = context.engine.machine().isa;
        if (F32Isa(isa) != isa) {
          info.add_features("bf16_dot");
        }
        return info;
      });
}

}  // namespace attnd::server
