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

void PrintJson(const Json& json, Session& session) {
  // A server may send text that is not UTF-8; that is no reason to throw.
  session.out << json.dump(2, ' ', false, Json::error_handler_t::replace)
              << "\n";
}

}  // namespace attnd::attnctl
