# Makes `cmake --install` install attnctl, the client library with its headers, a CMake
# package and the contract, in addition to the server. Another project then uses the
# client library like this:
#
#   find_package(attnd REQUIRED CONFIG)
#   target_link_libraries(mine PRIVATE attnd::client)

include(CMakePackageConfigHelpers)

set(attnd_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/attnd)
set(attnd_include_dir ${CMAKE_INSTALL_INCLUDEDIR}/attnd)

# Sources in this project and in others use #include "client/attention_client.h".
target_include_directories(attnd_client INTERFACE
  $<INSTALL_INTERFACE:${attnd_include_dir}>)
install(TARGETS attnctl RUNTIME)
# The other libraries are needed for linking, but are not part of the interface.
install(TARGETS
  attnd_base attnd_client attnd_merge attnd_messages attnd_transport attnd_wire
  EXPORT attnd_targets ARCHIVE)
# The client's headers include these.
install(FILES base/attention_options.def base/shape.h base/types.h
  DESTINATION ${attnd_include_dir}/base)
install(FILES
  client/attention_client.h client/error_details.h client/merge.h
  client/shared_region.h client/types.h
  DESTINATION ${attnd_include_dir}/client)
install(FILES
  proto/attnd/v1/attention.proto
  proto/attnd/v1/attention_grpc_service_config.json
  DESTINATION ${CMAKE_INSTALL_DATADIR}/attnd/proto/attnd/v1)

install(EXPORT attnd_targets NAMESPACE attnd:: FILE attndTargets.cmake
  DESTINATION ${attnd_package_dir})
configure_package_config_file(
  cmake/attndConfig.cmake.in ${PROJECT_BINARY_DIR}/attndConfig.cmake
  INSTALL_DESTINATION ${attnd_package_dir})
# Before 1.0, every minor version can be incompatible with the one before.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/attndConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/attndConfig.cmake
  ${PROJECT_BINARY_DIR}/attndConfigVersion.cmake
  DESTINATION ${attnd_package_dir})
