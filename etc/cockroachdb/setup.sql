-- SPDX-License-Identifier: Apache-2.0
-- Two users: the owner, who changes the schema ("glance-geo db sync"), and the
-- one that glance-api and the agent use, who reads and writes rows. They log in
-- with client certificates.
CREATE USER IF NOT EXISTS glance_owner;
CREATE USER IF NOT EXISTS glance;
CREATE DATABASE IF NOT EXISTS glance OWNER glance_owner;
USE glance;
ALTER DEFAULT PRIVILEGES FOR ROLE glance_owner
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO glance;
GRANT CONNECT ON DATABASE glance TO glance;
