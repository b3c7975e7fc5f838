#include "server/calls/plain_calls.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "attnd/v1/attention.pb.h"
#include "server/codec/message_parser.h"
#include "server/planning/estimate.h"
#include "server/version.h"

namespace attnd::server {
namespace {

// Parses the request and hands it to `handle`. The message, the slot and the
// bytes are given back when this returns.
template <typename Request, typename Handle>
absl::StatusOr<OutgoingMessage> Answer(ReceivedMessage&& received,
                                       std::optional<SplitMessage> light,
                                       Admission::Reservation&& admitted,
                                       const Handle& handle) {
  Admission::Reservation reservation = std::move(admitted);
  const ReceivedMessage message = std::move(received);
  Request request;
  const absl::StatusOr<SplitMessage> split =
      ParseMessage(message, std::move(light), reservation, request);
  if (!split.ok()) return split.status();
  auto response = handle(request, reservation);
  if (!response.ok()) return response.status();
  return OutgoingMessage::Of(*response);
}

// Admits the call, and answers it here or in the decode thread.
template <typename Request, typename Handle>
void Run(const ServiceContext& context, uint64_t caller,
         ReceivedMessage received, const StopSignal& stop, PlainDone done,
         Handle handle) {
  absl::StatusOr<Admission::Reservation> reservation =
      context.admission.Admit(received.size_bytes(), caller);
  if (!reservation.ok()) return done(reservation.status());
  absl::StatusOr<std::optional<SplitMessage>> light =
      SplitIfLight(received, Request::descriptor());
  if (!light.ok()) {
    *reservation = Admission::Reservation();
    return done(light.status());
  }
  if (*light || context.decoder == nullptr) {
    return done(Answer<Request>(std::move(received), *std::move(light),
                                *std::move(reservation), handle));
  }
  // std::function needs a function that can be copied.
  auto held = std::make_shared<Admission::Reservation>(*std::move(reservation));
  context.decoder->Run(
      caller, [&stop, held = std::move(held), received = std::move(received),
               done = std::move(done), handle = std::move(handle)]() mutable {
        absl::Status status = stop.Check();
        absl::StatusOr<OutgoingMessage> answer = OutgoingMessage();
        if (!status.ok()) {
          answer = std::move(status);
        } else {
          answer = Answer<Request>(std::move(received), std::nullopt,
                                   std::move(*held), handle);
        }
        received = ReceivedMessage();
        *held = Admission::Reservation();
        done(std::move(answer));
      });
}

}  // namespace

void AnswerMemoryEstimate(const ServiceContext& context, uint64_t caller,
                          ReceivedMessage received, const StopSignal& stop,
                          PlainDone done) {
  Run<v1::MemoryEstimateRequest>(
      context, caller, std::move(received), stop, std::move(done),
      [&context](const v1::MemoryEstimateRequest& request,
                 const Admission::Reservation&) {
        return EstimateMemory(request, context.engine, context.limits());
      });
}

void AnswerServerInfo(const ServiceContext& context, uint64_t caller,
                      ReceivedMessage received, const StopSignal& stop,
                      PlainDone done) {
  // Programs that watch the load also ask a server that is full, and must take
  // no slot from other calls. Their message is empty, so the call holds nothing
  // that has to be admitted.
  if (received.size_bytes() == 0) {
    if (absl::Status open = context.admission.CheckOpen(); !open.ok()) {
      return done(std::move(open));
    }
    return done(OutgoingMessage::Of(DescribeServer(context)));
  }
  Run<v1::GetServerInfoRequest>(
      context, caller, std::move(received), stop, std::move(done),
      [&context](const v1::GetServerInfoRequest&,
                 Admission::Reservation& reservation)
          -> absl::StatusOr<v1::GetServerInfoResponse> {
        // The load that a client reads is that of the other calls.
        reservation.LeaveSlot();
        reservation.ShrinkTo(0);
        return DescribeServer(context);
      });
}

v1::GetServerInfoResponse DescribeServer(const ServiceContext& context) {
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
  if (F32Isa(isa) != isa) info.add_features("bf16_dot");
  if (context.load != nullptr) {
    *info.mutable_load() =
        context.load->Report(context.engine, context.admission);
  }
  return info;
}

}  // namespace attnd::server
