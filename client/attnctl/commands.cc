#include "client/attnctl/commands.h"

namespace attnd::attnctl {

Json StatsJson(const client::ExecutionStats& stats) {
  return {{"isa", stats.isa},
          {"kernel", stats.kernel},
          {"tile_q", stats.tile_q},
          {"tile_kv", stats.tile_kv},
          {"threads", stats.threads},
          {"queue_time_ms", absl::ToDoubleMilliseconds(stats.queue_time)},
          {"compute_time_ms", absl::ToDoubleMilliseconds(stats.compute_time)},
          {"flops", stats.flops},
          {"workspace_bytes", stats.workspace_bytes}};
}

Json LoadJson(const client::ServerLoad& load) {
  Json methods = Json::array();
  for (const client::MethodLoad& method : load.methods) {
    methods.push_back(
        {{"method", method.method},
         {"finished", method.finished},
         {"failed", method.failed},
         {"queue_time_ms", absl::ToDoubleMilliseconds(method.queue_time)},
         {"compute_time_ms", absl::ToDoubleMilliseconds(method.compute_time)},
         {"total_time_ms", absl::ToDoubleMilliseconds(method.total_time)},
         {"flops", method.flops}});
  }
  return {{"uptime_ms", absl::ToDoubleMilliseconds(load.uptime)},
          {"in_flight", load.in_flight},
          {"max_in_flight", load.max_in_flight},
          {"reserved_bytes", load.reserved_bytes},
          {"connections", load.connections},
          {"max_connections", load.max_connections},
          {"busy_threads", load.busy_threads},
          {"methods", methods}};
}

const char* HealthName(client::Health health) {
  switch (health) {
    case client::Health::kServing:
      return "SERVING";
    case client::Health::kNotServing:
      return "NOT_SERVING";
    case client::Health::kUnknown:
      return "UNKNOWN";
  }
  return "UNKNOWN";
}

}  // namespace attnd::attnctl
