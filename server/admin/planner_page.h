// The web page for capacity planners.
#ifndef ATTND_SERVER_ADMIN_PLANNER_PAGE_H_
#define ATTND_SERVER_ADMIN_PLANNER_PAGE_H_

#include <string_view>

namespace attnd::server {

// Returns server/admin/planner.html, which the build puts into the program.
std::string_view PlannerPage();

}  // namespace attnd::server

#endif  // ATTND_SERVER_ADMIN_PLANNER_PAGE_H_
