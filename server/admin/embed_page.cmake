# Writes the file TO, which contains the file FROM as an array of bytes.
file(READ "${FROM}" page_bytes HEX)
string(REGEX REPLACE "(..)" "0x\\1," page_bytes "${page_bytes}")
configure_file("${CMAKE_CURRENT_LIST_DIR}/planner_page.cc.in" "${TO}" @ONLY)
